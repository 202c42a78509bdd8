"""`unistep demo`: the embedded MNIST models in one picture.

One and two evaluations of the consistency model beside 35 evaluations of the diffusion model it was tuned from,
from the same noise, with the seconds each takes an image.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from unistep.cli.arguments import MAX_SEED, check_range, instantiate, new_parser, parse
from unistep.cli.output import check_place
from unistep.errors import UserError

_DESCRIPTION = """Make digits of all ten classes with the embedded MNIST model, in one and in two network evaluations,
and with the 35 evaluations of its teacher; measure each, and write one picture."""


@dataclass(frozen=True)
class DemoConfig:
    """What to show.

    Args:
        output: the picture, a .png.
        rows: images of each class.
        seed: of the noise.
    """

    output: str = "unistep-demo.png"
    rows: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("--rows", self.rows, 1, 100)
        check_range("--seed", self.seed, 0, MAX_SEED)
        path = Path(self.output)
        if path.suffix.lower() != ".png":
            raise UserError(f"--output {self.output or repr('')}: the picture is a .png; give such a name")
        if path.is_dir():
            raise UserError(f"--output {path} is a folder; give another name")
        check_place(path)


def run(arguments: list[str]) -> None:
    """Samples, measures, writes the picture and says where it is."""
    parser = new_parser("demo", _DESCRIPTION)
    parser.add_class_arguments(DemoConfig, None)
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    config = instantiate(parser, parse(parser, arguments), DemoConfig)

    import torch
    from rich.console import Console
    from rich.table import Table

    from unistep.formats.model_folder.folder import load_model
    from unistep.generation.generate import generate
    from unistep.generation.plan import default_plan
    from unistep.images.sheet import Panel, save_sheet
    from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER

    student, teacher = load_model(EMBEDDED), load_model(EMBEDDED_TEACHER)
    classes = student.num_classes
    indices = list(range(config.rows * classes))
    labels = torch.arange(len(indices)) % classes
    panels = []
    table = Table("model", "evaluations", "seconds per image", title="MNIST digits, from the same noise")
    for model, steps in ((student, 1), (student, 2), (teacher, 18)):
        plan = default_plan(model.info, steps)
        arguments_ = (model.denoiser, plan, model.image_shape)
        list(generate(*arguments_, indices[:1], labels=labels))  # the first call prepares buffers
        started = time.perf_counter()
        images = list(generate(*arguments_, indices, seed=config.seed, labels=labels, batch_size=len(indices)))
        seconds = (time.perf_counter() - started) / len(indices)
        name = "consistency model" if model is student else "its teacher"
        table.add_row(name, str(plan.nfe), f"{seconds:.4f}")
        evaluations = f"{plan.nfe} evaluation{'s' * (plan.nfe > 1)}"
        panels.append(Panel(f"{name}, {evaluations}: {seconds * 1000:.1f} ms an image", torch.cat(images), classes))
    path = save_sheet(panels, Path(config.output))
    Console().print(table)
    print(f"picture: {path.resolve()}\nnext: unistep train mnist-quick   trains one from scratch in minutes")
