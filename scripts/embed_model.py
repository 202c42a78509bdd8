"""Make a run's models the embedded ones: half precision, with a card that says how they came about.

    python scripts/embed_model.py RUN --commit COMMIT --quality quality.md

COMMIT is the one the run was made with; quality.md holds the table that benchmarks/mnist_quality.py printed.
"""

import argparse
import dataclasses
import re
from pathlib import Path

import torch
import yaml

from unistep.formats.model_folder.card import PICTURE
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.networks.adm import UNet
from unistep.networks.patched import PatchedUNet
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER

LIMIT = 8 << 20


def embed(run: Path, stage: str, target: Path, commit: str, quality: str, timesteps: tuple[int, ...] | None) -> None:
    model = load_model(run / stage / "model")
    card = (run / stage / "model" / "README.md").read_text()
    head, _, rest = re.sub(r"^- Licence: .*\n", "", card, flags=re.MULTILINE).partition("## Config")
    recipe = yaml.safe_load((run / "config.yaml").read_text())["description"]
    facts = f"""## Origin

- Recipe: `{run.name}` ({recipe}), commit {commit}; made again by `unistep train {run.name}`
- Data: MNIST, 60,000 training images (Yann LeCun, Corinna Cortes; CC BY-SA 3.0), bundled with the package
- Machine: two CPU cores, bf16 autocast
- Weights: half precision
- Licence: Apache-2.0

## Measured quality

10,000 samples, 1,000 a class; class accuracy by a classifier trained apart from the model (99.56% on the MNIST test
images), Frechet distance of its penultimate features to the 60,000 training images. From
`python benchmarks/mnist_quality.py`:

{quality.strip()}

"""
    card = (
        head.replace("library_name: unistep\n", "library_name: unistep\nlicense: apache-2.0\n")
        + facts
        + "## Config"
        + rest
    )
    info = dataclasses.replace(model.info, timesteps=timesteps) if timesteps else model.info
    network = model.denoiser.network
    assert isinstance(network, UNet | PatchedUNet)
    picture = run / stage / "model" / PICTURE
    save_model(target, network, info, card=card, picture=picture if picture.exists() else None, dtype=torch.float16)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    assert size <= LIMIT, f"{target} has {size:,} bytes, more than {LIMIT:,}"
    print(f"{target}: {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--quality", type=Path, required=True)
    parser.add_argument(
        "--timesteps", type=lambda text: tuple(map(int, text.split(","))), help="two-step schedule, 0,25"
    )
    arguments = parser.parse_args()
    quality = arguments.quality.read_text()
    embed(arguments.run, "student", EMBEDDED, arguments.commit, quality, arguments.timesteps)
    embed(arguments.run, "teacher", EMBEDDED_TEACHER, arguments.commit, quality, None)


if __name__ == "__main__":
    main()
