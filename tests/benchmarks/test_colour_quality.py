"""The table of a colour model's quality, on the embedded digits at tiny counts."""

import json

import colour_quality
import numpy as np
import pytest

import unistep


def test_the_table_has_every_row_once(tmp_path, monkeypatch, capsys):
    digits = unistep.open_dataset("mnist-test")
    assert digits.labels is not None
    images, labels = digits.images.permute(0, 2, 3, 1).numpy(), digits.labels.numpy()
    np.savez(tmp_path / "reference.npz", arr_0=images[:90])
    np.savez(tmp_path / "test.npz", arr_0=images[80:150], arr_1=labels[80:150])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- colour-quality: begin -->\nold\n<!-- colour-quality: end -->\nafter\n")
    given = ["mnist", "--reference", tmp_path / "reference.npz", "--test", tmp_path / "test.npz", "--count", 30]
    given += [
        "--reference-count",
        80,
        "--test-count",
        50,
        "--features",
        "mnist",
        "--judge",
        "mnist",
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
    ]
    given = list(map(str, [*given, "--write", page]))
    colour_quality.main(given)
    table = page.read_text()
    assert table.startswith("before\n") and table.endswith("\nafter\n") and "old" not in table
    head, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    titles = (
        "samples | evaluations | FD-MNIST | KD-MNIST | precision | recall | agreement | copies | near | s per image"
    )
    assert head == f"| {titles} |"
    assert [row.split(" | ")[0] for row in rows] == ["| 1 step", "| 2 steps", "| 50 test images"]
    assert len({row.count("|") for row in (head, *rows)}) == 1
    assert "30 samples of each model, seed 0, fp32, against the first 80 training images; ± is the" in table

    found = json.loads((tmp_path / "out" / "quality.json").read_text())["rows"]
    made = unistep.open_dataset(tmp_path / "out" / "2-steps.npz")
    again = unistep.evaluate(made, features="mnist", metrics=["agreement"], progress=False, feature_cache=tmp_path)
    assert found["2 steps"]["metrics"]["agreement"]["value"] == again["agreement"].value > 0.8
    assert found["test images"]["metrics"]["agreement"]["value"] > 0.9
    assert (tmp_path / "out" / "1-step-neighbours.png").exists()

    monkeypatch.setattr(unistep, "evaluate", None)  # nothing is measured again
    colour_quality.main(given)
    assert page.read_text() == table
    with pytest.raises(SystemExit, match=r"quality.json is of another count; choose another --output"):
        colour_quality.main([*given, "--count", "31"])
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="2"):
        colour_quality.main(given)
    assert "has no lines" in capsys.readouterr().err
