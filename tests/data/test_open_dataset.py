"""What is and what is not a source, and the limits of the settings."""

import zipfile

import pytest

from unistep.data import DataConfig, open_dataset, read_dataset


@pytest.mark.parametrize(
    ("source", "guess"), [("mnst", "mnist"), ("MNIST", "mnist"), ("mnist_test", "mnist-test"), ("xyzzy", "bundled are")]
)
def test_a_misspelt_bundled_name(source, guess, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(lambda: open_dataset(source), source, guess)


def test_a_misspelt_path(class_folder, refusal):
    missing = class_folder.with_name("photo")
    refusal(lambda: open_dataset(str(missing)), missing, f"did you mean {class_folder}?")


def test_a_path_below_a_misspelt_folder(class_folder, refusal):
    missing = class_folder.with_name("fotos") / "cat" / "deep"
    refusal(lambda: open_dataset(str(missing)), missing, f"did you mean {class_folder}?")


def test_a_misspelt_path_with_nothing_like_it(tmp_path, refusal):
    refusal(lambda: open_dataset(str(tmp_path / "pictures")), tmp_path / "pictures", "no such file")


@pytest.mark.parametrize("source", ["", "  ", "a\0b", "x" * 5000, "two\nlines"])
def test_names_that_no_file_can_have(source, refusal):
    refusal(lambda: open_dataset(source))


def test_a_folder_of_the_same_name_as_a_bundled_set(tmp_path, class_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folder.rename(tmp_path / "mnist")
    assert len(open_dataset("./mnist")) == 6


def test_the_home_folder_is_found(class_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(class_folder.parent))
    assert len(open_dataset("~/photos")) == 6


@pytest.mark.parametrize("name", ["a.tar.gz", "photo.png", "set.npy"])
def test_other_files_are_refused(tmp_path, refusal, name):
    (tmp_path / name).write_bytes(b"")
    refusal(lambda: open_dataset(str(tmp_path / name)), tmp_path / name, "a folder of images, a .zip or an .npz")


def test_an_empty_folder(tmp_path, refusal):
    (tmp_path / "notes.txt").write_text("")
    refusal(lambda: open_dataset(str(tmp_path)), tmp_path, "no images")


def test_an_empty_zip(tmp_path, refusal):
    path = tmp_path / "set.zip"
    zipfile.ZipFile(path, "w").close()
    refusal(lambda: open_dataset(str(path)), path, "no images")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", b"\x1f\x8b tar"])
def test_a_zip_that_is_none(tmp_path, refusal, content):
    path = tmp_path / "set.ZIP"
    path.write_bytes(content)
    refusal(lambda: open_dataset(str(path)), path, "no zip archive")


@pytest.mark.parametrize(
    ("field", "value"), [("resolution", 0), ("resolution", -4), ("channels", 2), ("channels", 4), ("memory_limit", -1)]
)
def test_settings_beyond_their_limits(field, value, refusal):
    refusal(lambda: DataConfig(**{field: value}), f"`{field}`", value)


def test_arguments_are_those_of_the_config(class_folder):
    import torch

    import unistep

    (class_folder / "cat" / "2.png").write_bytes(b"broken")
    given = {"resolution": 3, "channels": 1, "skip_bad": True, "use_labels": False}
    dataset = unistep.open_dataset(class_folder, **given)
    assert repr(dataset) == "ImageDataset(6 grey images of 3x3, 1 skipped)"
    assert torch.equal(dataset.images, read_dataset(DataConfig(source=str(class_folder), **given)).images)
