"""The report on a source of images."""

import json

import numpy as np
import pytest

from unistep.data.inspect import inspect_source
from unistep.errors import UserError


def render(report):
    return "\n".join([*(f"{name} {value}" for name, value in report.rows()), *report.remarks()])


def test_mixed_folder(class_folder, png, pixels):
    grey = np.full((2, 3), 51, np.uint8)
    (class_folder / "cat" / "1.png").write_bytes(png(grey))
    (class_folder / "dog" / "2.png").write_bytes(b"broken")
    report = inspect_source(str(class_folder))
    assert report.num_images == 5
    assert report.sizes == {"5x4": 4, "3x2": 1}
    assert report.modes == {"RGB": 4, "L": 1}
    assert report.channels == 3
    assert report.classes == {"cat": 2, "dog": 4}
    assert report.num_bytes == sum(path.stat().st_size for path in class_folder.glob("*/[0-9].png"))
    ((name, reason),) = report.bad
    assert name == f"{class_folder}/dog/2.png"
    assert "not an image" in reason
    every_pixel = np.concatenate([pixels[[0, 3, 4, 5]].reshape(-1, 3), np.full((6, 3), 51)]) / 255
    np.testing.assert_allclose(report.mean, every_pixel.mean(0), rtol=1e-12)
    np.testing.assert_allclose(report.std, every_pixel.std(0), rtol=1e-12)
    shown = render(report)
    for words in ("5 readable, 1 not", "5x4: 4", "`resolution`", "`skip_bad`", "dog/2.png", "2 classes"):
        assert words in shown


def test_grey_folder_without_classes(tmp_path, png):
    values = np.array([[0, 255], [255, 255]], np.uint8)
    (tmp_path / "a.png").write_bytes(png(values))
    report = inspect_source(str(tmp_path))
    assert (report.channels, report.classes, report.bad) == (1, None, ())
    assert report.mean == pytest.approx((0.75,))
    assert report.std == pytest.approx((np.sqrt(0.1875),))
    assert report.remarks() == []


def test_transparency_and_16_bits_are_reported_as_they_are_stored(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2, 4), np.uint8)))
    (tmp_path / "b.png").write_bytes(png(np.zeros((2, 2), np.uint16)))
    report = inspect_source(str(tmp_path))
    assert report.modes == {"RGBA": 1, "I;16": 1}
    assert report.mean == pytest.approx((0.5, 0.5, 0.5))


def test_only_bad_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    report = inspect_source(str(tmp_path))
    assert (report.num_images, report.mean, report.std) == (0, (), ())
    assert "0 readable, 1 not" in render(report)


def test_unusable_labels_do_not_stop_it(class_folder):
    (class_folder / "dataset.json").write_text('{"labels": [["gone.png", 1]]}')
    report = inspect_source(str(class_folder))
    assert report.num_images == 6
    assert report.classes is None
    assert "gone.png" in report.label_error
    assert "gone.png" in render(report)


def test_npz(tmp_path, pixels):
    path = tmp_path / "set.npz"
    np.savez(path, arr_0=pixels, arr_1=np.array([0, 2, 2, 2, 0, 0]))
    report = inspect_source(str(path))
    assert (report.num_images, report.sizes, report.modes) == (6, {"5x4": 6}, {"RGB": 6})
    assert report.classes == {"0": 3, "1": 0, "2": 3}
    assert report.num_bytes == path.stat().st_size
    np.testing.assert_allclose(report.mean, (pixels / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(report.std, (pixels / 255).std((0, 1, 2)), rtol=1e-12)


def test_bundled():
    report = inspect_source("mnist-test")
    assert report.num_images == 10_000
    assert report.mean == pytest.approx((0.13251,), abs=1e-5)
    assert report.std == pytest.approx((0.31048,), abs=1e-5)
    assert report.classes["0"] == 980


def test_report_is_json(class_folder):
    report = inspect_source(str(class_folder))
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict()["sizes"] == {"5x4": 6}
    assert repr(report) == f"DatasetReport({class_folder}: 6 images of 5x4, 0 unreadable)"
    assert "<td" in report._repr_html_() and "5x4: 6" in report._repr_html_()


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        inspect_source(str(tmp_path / "nothing"))
