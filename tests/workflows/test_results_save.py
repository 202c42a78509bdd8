"""Where results can be saved: one line for every other place, and nothing is written."""

import jaxtyping
import pytest

import unistep
from unistep.errors import UserError


@pytest.fixture(scope="module")
def results():
    digits = unistep.sample(num_images=2, class_labels=[3, 8], progress=False)
    edited = unistep.edit(None, digits, "denoise", sigma=0.5, class_labels=[3, 8], progress=False)
    report = unistep.evaluate(digits, metrics=["is"], progress=False)
    return {"images": digits.save, "edit": edited.save, "sheet": edited.save_sheet, "report": report.save}


@pytest.mark.parametrize("result", ["images", "edit", "sheet", "report"])
@pytest.mark.parametrize("place", ["", " ", "x.jpg", 3, b"x.png"])
def test_places_that_are_none(results, result, place, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its errors would come first
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^`path` ") as caught:
        results[result](place)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("result", "name"), [("images", "x.png"), ("edit", "x"), ("sheet", "x.png"), ("report", "x.json")]
)
def test_the_home_folder(results, result, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    results[result](f"~/{name}")
    assert (tmp_path / name).exists()
