"""Parquet files in the layout of Hugging Face's datasets; those that read them need pyarrow."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from unistep.data import DataConfig, open_dataset, read_dataset
from unistep.data.inspect import inspect_source


@pytest.fixture
def save(png, pixels):
    """Write images and labels as Hugging Face's datasets does."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(path: Path, labels=(0, 1, 2, 0, 1, 2), names=None, image="image", label="label", **changes):
        rows = changes.get("rows", [{"bytes": png(one), "path": None} for one in pixels])
        table = arrow.table({image: rows} | ({} if labels is None else {label: list(labels)}))
        if names is not None:
            features = {label: {"names": names, "_type": "ClassLabel"}, image: {"_type": "Image"}}
            meta = {"info": {"features": features}} if isinstance(names, list) else names
            table = table.replace_schema_metadata({"huggingface": json.dumps(meta)})
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, row_group_size=2)
        return path

    return write


def test_without_pyarrow(tmp_path, refusal, monkeypatch):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1")
    real = importlib.import_module

    def absent(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    for place in (path, tmp_path):
        refusal(lambda place=place: open_dataset(place), "pyarrow", "pip install 'unistep[parquet]'")


def test_a_file(save, tmp_path, pixels):
    path = save(tmp_path / "a.parquet", names=["cat", "dog", "owl"])
    dataset = open_dataset(path)
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert (dataset.labels.tolist(), dataset.class_names) == ([0, 1, 2, 0, 1, 2], ["cat", "dog", "owl"])
    assert read_dataset(DataConfig(str(path), resolution=3, channels=1)).images.shape == (6, 1, 3, 3)
    assert inspect_source(str(path)).classes == {"cat": 2, "dog": 2, "owl": 2}


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("img", "fine_label")])
def test_names_of_columns(save, tmp_path, image, label):
    assert open_dataset(save(tmp_path / "a.parquet", image=image, label=label)).labels.tolist() == [0, 1, 2] * 2


def test_bytes_without_a_struct_and_labels_that_are_names(save, tmp_path, png, pixels):
    rows = [png(one) for one in pixels]
    dataset = open_dataset(save(tmp_path / "a.parquet", labels=["b", "a"] * 3, rows=rows))
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 0] * 3, ["a", "b"])
    assert open_dataset(save(tmp_path / "b.parquet", labels=None, rows=rows)).labels is None


def test_a_folder_of_several_files_and_splits(save, tmp_path, pixels, caplog):
    for name in ("train-00000-of-00002", "train-00001-of-00002-0a1b", "test-00000-of-00001"):
        save(tmp_path / "set" / "data" / f"{name}.parquet")
    for place in (tmp_path / "set", tmp_path / "set" / "data"):
        dataset = open_dataset(place)
        assert len(dataset) == 12 and dataset.labels.tolist() == [0, 1, 2] * 4
    assert "the files of test are passed over" in caplog.text


def test_splits_of_which_none_is_meant(save, tmp_path, refusal):
    for name in ("test", "validation"):
        save(tmp_path / f"{name}-00000-of-00001.parquet")
    refusal(lambda: open_dataset(tmp_path), "test and validation", "one split")


def test_files_that_are_none(save, tmp_path, refusal, png, pixels):
    path = tmp_path / "a.parquet"
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        refusal(lambda: open_dataset(path), path, "damaged")
    refusal(lambda: open_dataset(save(path, rows=[1, 2, 3, 4, 5, 6])), path, "no column of images", "label")
    refusal(lambda: open_dataset(save(path, labels=[-1] * 6)), path, "label -1")
    refusal(lambda: open_dataset(save(path, labels=[0, 1, 2, 0, 1, None])), path, "label None")
    whole = save(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(50) + whole[len(whole) // 2 + 50 :])
    with pytest.raises(ValueError):
        open_dataset(path)


def test_rows_that_are_no_images(save, tmp_path, refusal, png, pixels):
    good = {"bytes": png(pixels[0]), "path": "a.png"}
    for row, word in (({"bytes": None, "path": "a.png"}, "no bytes"), ({"bytes": b"x", "path": None}, "not an image")):
        path = save(tmp_path / "a.parquet", rows=[good] * 5 + [row])
        refusal(lambda path=path: open_dataset(path), "a.parquet/5", word, "`skip_bad=True`")
        assert len(open_dataset(path, skip_bad=True)) == 5


@pytest.mark.parametrize("names", [{"info": 3}, [], ["a"], ["a", 1, 2], {"info": {"features": []}}])
def test_names_of_classes_that_do_not_fit(save, tmp_path, names):
    assert open_dataset(save(tmp_path / "a.parquet", names=names)).class_names is None
