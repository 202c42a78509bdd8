"""The curve of distances over evaluations, on the embedded models at tiny counts."""

import json

import distance_curve
import numpy as np
import pytest
from PIL import Image

import unistep


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    images = unistep.open_dataset("mnist-test").images.permute(0, 2, 3, 1).numpy()
    np.savez(folder / "reference.npz", arr_0=images[:100])
    np.savez(folder / "test.npz", arr_0=images[100:130])
    return folder


def arguments(digits, folder, *more):
    given = ["--reference", digits / "reference.npz", "--test", digits / "test.npz", "--features", "mnist"]
    given += ["--count", 24, "--evaluations", "1,3", "--solvers", "heun", "--device", "cpu"]
    return list(map(str, [*given, "--feature-cache", folder / "features", "--output", folder / "curve.json", *more]))


def test_every_point_is_measured_once(digits, tmp_path, monkeypatch):
    distance_curve.main(arguments(digits, tmp_path))
    found = json.loads((tmp_path / "curve.json").read_text())
    assert list(found["points"]) == [" @ floor", "student @ 1", "student @ 3", "teacher @ 1", "teacher @ 2"]
    assert [point["evaluations"] for point in found["points"].values()] == [None, 1, 3, 1, 3]
    assert [point["images"] for point in found["points"].values()] == [24] * 5
    report = unistep.evaluate(
        unistep.load("mnist-teacher", device="cpu", dtype="fp32"),
        reference=digits / "reference.npz",
        metrics=["fd", "kd"],
        steps=2,
        num_images=24,
        progress=False,
        feature_cache=tmp_path / "features",
    )
    for name in ("fd", "kd"):
        assert found["points"]["teacher @ 2"]["metrics"][name]["value"] == pytest.approx(report[name].value, rel=1e-12)
    picture = Image.open(tmp_path / "curve.png")
    assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20)) > 20

    asked = []
    monkeypatch.setattr(unistep, "evaluate", lambda samples, **options: asked.append(options))
    distance_curve.main(arguments(digits, tmp_path))
    assert asked == [] and json.loads((tmp_path / "curve.json").read_text()) == found
    (tmp_path / "curve.png").unlink()
    distance_curve.main(["--draw", "--output", str(tmp_path / "curve.json")])
    assert (tmp_path / "curve.png").exists()
    with pytest.raises(SystemExit, match="curve.json is of another count"):
        distance_curve.main(arguments(digits, tmp_path, "--count", 25))


@pytest.mark.parametrize(
    ("evaluations", "solver", "steps"),
    [(8, None, 8), (8, "euler", 8), (1, "heun", 1), (2, "heun", 1), (8, "heun", 4), (35, "heun", 18), (1, "dpm2", 0)],
)
def test_steps_are_the_most_that_the_evaluations_allow(evaluations, solver, steps):
    assert distance_curve.steps_within(evaluations, solver) == steps
