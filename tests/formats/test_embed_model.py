"""The script that makes a run's models the embedded ones."""

import shutil
from pathlib import Path

import embed_model
import pytest
import torch
import yaml

from unistep.formats import embedded
from unistep.formats.embedded import EMBEDDED_MODELS
from unistep.formats.model_folder.folder import load_model

FACTS = ["--name", "mnist", "--commit", "abc123", "--machine", "a card"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, which writes into a folder of the test."""
    (tmp_path / "assets").mkdir()
    folders = {row.name: row.folder for row in EMBEDDED_MODELS.values()}
    run = tmp_path / "mnist-embedded"
    for stage, name in (("student", "mnist"), ("teacher", "mnist-teacher")):
        shutil.copytree(folders[name], run / stage / "model")
        card = run / stage / "model" / "README.md"
        card.write_text(
            "---\nlibrary_name: unistep\n---\n\n# mine\n\n- Licence: that of the data\n\n## Config\n\nseed: 0\n"
        )
    (run / "config.yaml").write_text(yaml.safe_dump({"description": "digits", "data": {"source": "mnist"}}))
    (tmp_path / "quality.md").write_text("| samples | good |\n")
    monkeypatch.setattr(embedded, "_ASSETS", tmp_path / "assets")

    def call(*arguments):
        quality = ["--quality", str(tmp_path / "quality.md")]
        monkeypatch.setattr("sys.argv", ["embed_model.py", str(run), *FACTS, *quality, *arguments])
        embed_model.main()
        return tmp_path / "assets"

    return call


def test_both_models_are_written_in_half_precision(script):
    assets = script("--timesteps", "0,20")
    student, teacher = load_model(assets / "mnist"), load_model(assets / "mnist-teacher")
    assert (student.info.kind, student.info.timesteps) == ("consistency", (0, 20))
    assert teacher.info.kind == "diffusion"
    weights = assets / "mnist" / "unet" / "diffusion_pytorch_model.safetensors"
    parameters = sum(p.numel() for p in student.denoiser.network.parameters())
    assert weights.stat().st_size < 2 * parameters + 50_000
    original = load_model(Path(assets.parent / "mnist-embedded" / "student" / "model"))
    for found, given in zip(student.denoiser.parameters(), original.denoiser.parameters(), strict=True):
        torch.testing.assert_close(found, given.half().float())


def test_the_card_says_how_it_came_about(script):
    card = (script() / "mnist" / "README.md").read_text()
    wanted = [
        "license: apache-2.0",
        "- Recipe: `mnist-embedded` (digits), commit abc123",
        "made again by `unistep train mnist-embedded`",
        "- Machine: a card",
        "## Measured quality\n\n| samples | good |\n\n## Config\n\nseed: 0",
    ]
    assert [line for line in wanted if line not in card] == []
    assert card.count("Licence") == 1


def test_a_model_that_is_too_large_is_refused(script, monkeypatch):
    monkeypatch.setattr(embed_model, "LIMIT", 1 << 20)
    with pytest.raises(SystemExit, match="more than 1,048,576"):
        script()


def test_the_data_of_every_row_has_a_line(script):
    from unistep.config import find_recipe

    sources = {
        yaml.safe_load(find_recipe(row.recipe).read_text())["data"]["source"] for row in EMBEDDED_MODELS.values()
    }
    assert sources <= set(embed_model.DATA)
