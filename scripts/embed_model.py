"""Make a run's models the embedded ones: half precision, with a card that says how they came about.

    python scripts/embed_model.py RUN --name mnist --commit COMMIT --machine "two CPU cores, bf16 autocast" \\
        --quality quality.md

The student goes into the folder of the row NAME of `unistep.formats.embedded`, its teacher into that of its teacher; a
run without a teacher of its own leaves that as it is. COMMIT is the one the run was made with. quality.md says how good
the models are and with which command it was found; its text is the section "Measured quality" of the cards.
"""

import argparse
import dataclasses
import re
from pathlib import Path

import torch
import yaml

from unistep.formats.embedded import EMBEDDED_MODELS, EmbeddedModel
from unistep.formats.model_folder.card import PICTURE
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.networks.adm import UNet
from unistep.networks.patched import PatchedUNet

LIMIT = 8 << 20
DATA = {
    "mnist": "MNIST, 60,000 training images (Yann LeCun, Corinna Cortes; CC BY-SA 3.0), bundled with the package",
    "emoji": "2,214 pictures of Noto Emoji (Google; Apache-2.0), bundled with the package as the dataset `emoji`",
}


def embed(run: Path, stage: str, row: EmbeddedModel, facts: str, timesteps: tuple[int, ...] | None) -> None:
    """Write the model of a stage into the folder of its row."""
    model = load_model(run / stage / "model")
    card = (run / stage / "model" / "README.md").read_text()
    head, _, rest = re.sub(r"^- Licence: .*\n", "", card, flags=re.MULTILINE).partition("## Config")
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
    save_model(row.folder, network, info, card=card, picture=picture if picture.exists() else None, dtype=torch.float16)
    size = sum(p.stat().st_size for p in row.folder.rglob("*") if p.is_file())
    print(f"{row.folder}: {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{row.folder} has {size:,} bytes, more than {LIMIT:,}")


def origin(run: Path, row: EmbeddedModel, commit: str, machine: str, quality: str) -> str:
    """The sections of the card on how the model came about and how good it is."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    return f"""## Origin

- Recipe: `{row.recipe}` ({config["description"]}), commit {commit}; made again by `unistep train {row.recipe}`
- Data: {DATA[config["data"]["source"]]}
- Machine: {machine}
- Weights: half precision
- Licence: Apache-2.0

## Measured quality

{quality.strip()}

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="name of the student's row")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--machine", required=True, help="what it was trained on, for the card")
    parser.add_argument("--quality", type=Path, required=True)
    parser.add_argument(
        "--timesteps", type=lambda text: tuple(map(int, text.split(","))), help="two-step schedule, 0,25"
    )
    arguments = parser.parse_args()
    student = EMBEDDED_MODELS[arguments.name]
    facts = origin(arguments.run, student, arguments.commit, arguments.machine, arguments.quality.read_text())
    embed(arguments.run, "student", student, facts, arguments.timesteps)
    if (arguments.run / "teacher").exists():
        embed(arguments.run, "teacher", EMBEDDED_MODELS[student.teacher], facts, None)


if __name__ == "__main__":
    main()
