"""Datasets that Hugging Face's library saved to the disk."""

import json

import numpy as np
import pytest

from unistep.data import open_dataset
from unistep.data.open import open_reader

arrow = pytest.importorskip("pyarrow")

NAMES = ["cat", "dog"]


@pytest.fixture
def saved(tmp_path, pixels, png):
    """A saved split, in the layout of `save_to_disk`; the table may be changed before."""

    def write(name="set", change=lambda table: table, writer=None, indices=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        images = [{"bytes": png(image), "path": None} for image in pixels]
        table = arrow.table({"image": images, "label": [0, 0, 1, 1, 1, 1]}).replace_schema_metadata(metadata)
        files = []
        for number, part in enumerate((table.slice(0, 4), table.slice(4))):
            files.append(f"data-{number:05}-of-00002.arrow")
            with (writer or arrow.ipc.new_stream)(str(folder / files[-1]), change(part).schema) as out:
                out.write_table(change(part), max_chunksize=3)
        state = {"_data_files": [{"filename": file} for file in files], "_indices_data_files": indices}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
        return folder

    return write


@pytest.mark.parametrize("writer", [arrow.ipc.new_stream, arrow.ipc.new_file])
def test_a_saved_dataset(saved, pixels, writer):
    dataset = open_dataset(saved(writer=writer))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 1] and dataset.class_names == NAMES


def test_the_split_of_training(saved, tmp_path, pixels, caplog):
    saved("all/train")
    saved("all/test")
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(open_dataset(tmp_path / "all")) == 6
    assert "test is passed over" in caplog.text
    assert len(open_dataset(tmp_path / "all/test")) == 6


def test_labels_that_are_names_or_not_there(saved):
    named = saved("named", lambda t: t.set_column(1, "label", [[["b", "a"][v] for v in t["label"].to_pylist()]]))
    assert open_dataset(named).class_names == ["a", "b"]
    assert open_dataset(saved("none", lambda t: t.drop_columns(["label"]))).labels is None


def test_rows_without_bytes_are_named(saved, refusal):
    def change(table):
        rows = table["image"].to_pylist()
        rows[1] = {"bytes": None, "path": None}
        return table.set_column(0, "image", arrow.array(rows, table["image"].type))

    folder = saved(change=change)
    refusal(lambda: open_dataset(folder), "data-00000-of-00002.arrow/1", "holds no bytes")
    assert len(open_dataset(folder, skip_bad=True)) == 4  # of each file one


def test_damage_is_one_line(saved, refusal):
    path = saved() / "data-00001-of-00002.arrow"
    content = path.read_bytes()
    for damaged in (content[:100], b"", b"x" * 500, content[: len(content) // 2]):
        path.write_bytes(damaged)
        refusal(lambda: open_dataset(path.parent), "data-00001-of-00002.arrow")
    path.unlink()
    refusal(lambda: open_dataset(path.parent), "data-00001-of-00002.arrow", "save_to_disk")


@pytest.mark.parametrize("splits", ["[]", "null", '["../x"]', '["a", "b"]'])
def test_bad_splits(saved, tmp_path, refusal, splits):
    saved("all/a")
    (tmp_path / "all/dataset_dict.json").write_text(f'{{"splits": {splits}}}')
    refusal(lambda: open_dataset(tmp_path / "all"), "all")


def test_an_order_of_its_own_is_refused(saved, refusal):
    refusal(lambda: open_reader(str(saved(indices=[{"filename": "i.arrow"}]))), "flatten_indices")
