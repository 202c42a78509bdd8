"""What a model card says."""

import re

import pytest

from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.card import Training, model_card, plain_card
from unistep.networks.adm_config import UNetConfig

COMPUTE = {"steps": 1200, "images": 76800, "seconds": 90, "parameters": 12345}
TRAINING = Training("mnist", COMPUTE, "seed: 0\n", ["the data (MNIST, CC BY-SA 3.0)", "edm.pkl"])


def network(**fields) -> UNetConfig:
    return UNetConfig(sample_size=28, in_channels=1, out_channels=1, **fields)


def test_a_card_says_what_the_model_is():
    info = ModelInfo(method="easy consistency tuning (ECT), guidance 1.5")
    card = model_card("mine", info, network(num_class_embeds=10), TRAINING, has_picture=True)
    for line in (
        "# mine",
        "- Method: easy consistency tuning (ECT), guidance 1.5",
        "- Images: 28 x 28 pixels, grey",
        "- Classes: 10",
        "- Network: UNet, 12,345 parameters",
        "- Compute: 1,200 steps, 76,800 images seen, 1.5 minutes",
        "- Licence: the terms of the data (MNIST, CC BY-SA 3.0) and of edm.pkl apply",
        "![samples](samples.png)",
        'model = unistep.load("PATH-OF-THIS-FOLDER")',
        "images = unistep.sample(model, num_images=16, steps=2, class_labels=[0, 1])",
        "seed: 0",
    ):
        assert line in card.splitlines(), line
    assert "- class-conditional-image-generation" in card and "unconditional" not in card


@pytest.mark.parametrize("null_label", [None, 0])
def test_a_model_without_classes_is_unconditional(null_label):
    own = network(num_class_embeds=1 if null_label == 0 else None)
    card = model_card("mine", ModelInfo("diffusion", null_label=null_label), own, TRAINING)
    assert "- unconditional-image-generation" in card and "- Classes: none, unconditional" in card
    assert "class_labels" not in card and "steps=" not in card and "samples.png)" not in card


def test_a_plain_card_says_what_is_known():
    card = plain_card("cats", ModelInfo(method="consistency training"), "converted from cats.pt", network())
    assert "- Source: converted from cats.pt" in card and "- Images: 28 x 28 pixels, grey" in card
    assert "- Images" not in plain_card("cats", ModelInfo())


def test_the_snippet_of_a_card_runs(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = model_folder("consistency", num_class_embeds=3)
    card = model_card("mine", ModelInfo(), network(num_class_embeds=3), TRAINING)
    code = card.split("```python\n")[1].split("```")[0].replace("PATH-OF-THIS-FOLDER", str(folder))
    exec(code, {})
    assert (tmp_path / "samples.png").is_file()


def test_a_card_escapes_what_it_quotes():
    evil = "a <script>alert(1)</script>\n\n# Injected\n```sh\nrm -rf ~\n``` ![x](http://evil/y.png)\x1b[2J"
    config = "description: |\n  ```\n  </details> ````` <b>\n"
    for card in (
        model_card(evil, ModelInfo(method=evil), network(), Training(evil, COMPUTE, config, [evil])),
        plain_card(evil, ModelInfo(method=evil), evil, network()),
    ):
        outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
        assert "<" not in outside and "\x1b" not in card
        assert not re.search(r"^(# Injected|```|rm -rf)", outside, flags=re.MULTILINE)
        assert not re.search(r"(?<!\\)\[", outside) and not re.search(r"(?<!\\)`", outside)
    card = model_card("mine", ModelInfo(), network(), Training("mnist", COMPUTE, config))
    block = re.search(r"^(`{6,})yaml\n(.*?)^\1$", card, flags=re.DOTALL | re.MULTILINE)
    assert block and block[2] == config and card.rstrip().endswith(block[1])
