"""CIFAR-10 as its authors publish it: pickles, binary records, folders and archives. No pickle is executed."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from unistep.data import open_dataset
from unistep.data.cifar import open_cifar

NAMES = ["airplane", "cat", "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3072), np.uint8)
LABELS = [0, 1, 2] * 4


def python_2(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled those of CIFAR-10."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86"
    array += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    array += b"T" + struct.pack("<I", data.size) + data.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + text(b"a.png") * len(labels) + b"e"
    pairs = [(b"batch_label", text(b"batch 1 of 5")), (b"labels", numbers), (b"data", array), (b"filenames", names)]
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in pairs) + b"u."


def batch(first: int, last: int, protocol: int | None = None) -> bytes:
    data, labels = PIXELS[first:last], LABELS[first:last]
    return python_2(data, labels) if protocol is None else pickle.dumps({b"data": data, b"labels": labels}, protocol)


def binary(first: int, last: int) -> bytes:
    return b"".join(bytes([LABELS[i]]) + PIXELS[i].tobytes() for i in range(first, last))


def published(binary_: bool, protocol: int | None = None) -> dict[str, bytes]:
    """Files of two training batches and a test batch."""
    if binary_:
        meta = "\n".join(NAMES).encode() + b"\n\n"
        files = {f"data_batch_{i}.bin": binary(4 * i - 4, 4 * i) for i in (1, 2)} | {"test_batch.bin": binary(8, 12)}
        return files | {"batches.meta.txt": meta, "readme.html": b"<html>"}
    files = {f"data_batch_{i}": batch(4 * i - 4, 4 * i, protocol) for i in (1, 2)}
    meta = pickle.dumps({"label_names": NAMES, "num_vis": 3072}, 2)
    return files | {"test_batch": batch(8, 12, protocol), "batches.meta": meta, "readme.html": b"<html>"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, files: dict[str, bytes], folder: str = "cifar-10-batches-py", mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in reversed(files.items()):  # in no order, as those published
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def check(dataset, first: int, last: int, names: list[str] | None = NAMES) -> None:
    np.testing.assert_array_equal(dataset.images.numpy(), PIXELS[first:last].reshape(-1, 3, 32, 32))
    assert dataset.labels.tolist() == LABELS[first:last]
    assert dataset.class_names == names


@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
def test_a_folder_of_pickles(tmp_path, protocol, caplog):
    folder = write(tmp_path / "cifar-10-batches-py", published(False, protocol))
    check(open_dataset(folder), 0, 8)
    assert "test_batch is passed over; it is a dataset of its own" in caplog.text
    check(open_dataset(folder / "test_batch"), 8, 12)
    check(open_dataset(folder / "data_batch_2"), 4, 8)
    check(open_dataset(tmp_path), 0, 8)  # the folder around it


def test_a_folder_of_binary_records(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-bin", published(True))
    check(open_dataset(folder), 0, 8)
    check(open_dataset(folder / "test_batch.bin"), 8, 12)
    check(open_dataset(tmp_path), 0, 8)


@pytest.mark.parametrize("binary_", [False, True])
@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w")])
def test_an_archive(tmp_path, binary_, name, mode):
    path = pack(tmp_path / name, published(binary_), mode=mode)
    check(open_dataset(path), 0, 8)
    check_half = open_cifar(path, "cifar10-test", test=True)
    assert check_half is not None and len(check_half) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_batches_are_in_the_order_of_their_numbers(tmp_path):
    files = {f"data_batch_{i}": batch(i - 1, i) for i in range(1, 13)}
    check(open_dataset(write(tmp_path / "many", files)), 0, 12, None)


def test_a_folder_of_the_test_batch_alone(tmp_path):
    check(open_dataset(write(tmp_path / "a", {"test_batch": batch(8, 12)})), 8, 12, None)


def test_names_that_do_not_fit_are_left_out(tmp_path):
    for index, meta in enumerate([pickle.dumps({"label_names": NAMES[:2]}, 2), pickle.dumps({"label_names": 3}, 2)]):
        files = {"data_batch_1": batch(0, 4), "batches.meta": meta}
        check(open_dataset(write(tmp_path / str(index), files)), 0, 4, None)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_never_executed(tmp_path, refusal, protocol):
    evil = pickle.dumps({"data": PIXELS[:4], "labels": LABELS[:4], "more": Evil(tmp_path / "canary")}, protocol)
    path = write(tmp_path / "cifar", {"data_batch_1": evil}) / "data_batch_1"
    refusal(lambda: open_dataset(path), path)
    refusal(lambda: open_dataset(path.parent), path)
    refusal(lambda: open_dataset(pack(tmp_path / "cifar.tar.gz", {"data_batch_1": evil})), "data_batch_1")
    (path.parent / "data_batch_1").write_bytes(batch(0, 4))
    (path.parent / "batches.meta").write_bytes(pickle.dumps({"label_names": Evil(tmp_path / "canary")}, protocol))
    refusal(lambda: open_dataset(path.parent), "batches.meta", "nothing in the file was executed")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no pickle"),
        (b"\x80\x02N.", "holds no dict"),
        (b"\x80\x02}.", "no uint8 array of 3,072 pixels"),
        (batch(0, 4)[:5000], "no pickle, or damaged"),
        (python_2(PIXELS[:4], LABELS[:3]), "one label for each of 4 images"),
        (pickle.dumps({"data": PIXELS[:4].astype(np.float32), "labels": LABELS[:4]}, 2), "no uint8 array"),
        (pickle.dumps({"data": PIXELS[:4, :3000], "labels": LABELS[:4]}, 2), "no uint8 array"),
        (pickle.dumps({"data": PIXELS[:4], "labels": [0, 1, 2, -1]}, 2), "label -1"),
        (pickle.dumps({"data": PIXELS[:4], "labels": ["a"] * 4}, 2), "label a"),
        (pickle.dumps({"data": PIXELS[:4], "labels": 4}, 2), "one label for each"),
        (pickle.dumps({"data": [1, 2], "labels": [0, 1]}, 2), "no uint8 array"),
    ],
)
def test_batches_that_are_none(tmp_path, refusal, content, words):
    path = write(tmp_path / "cifar", {"data_batch_1": content}) / "data_batch_1"
    refusal(lambda: open_dataset(path), path, words)
    refusal(lambda: open_dataset(path.parent), path, words)


@pytest.mark.parametrize("content", [b"", binary(0, 2)[:-1], binary(0, 2) + b"\0"])
def test_records_of_another_length(tmp_path, refusal, content):
    path = write(tmp_path / "cifar", {"data_batch_1.bin": content}) / "data_batch_1.bin"
    refusal(lambda: open_dataset(path), path, "no records of 3,073 bytes")


def test_both_layouts_in_one_folder(tmp_path, refusal):
    folder = write(tmp_path / "cifar", published(True) | published(False))
    refusal(lambda: open_dataset(folder), folder, "keep one of them")


def test_other_archives(tmp_path, refusal):
    path = pack(tmp_path / "photos.tar.gz", {"a.png": b"a"})
    refusal(lambda: open_dataset(path), path, "no batches of CIFAR-10", "give a folder of images")
    path.write_bytes(pack(tmp_path / "b.tar.gz", published(False)).read_bytes()[:2000])
    refusal(lambda: open_dataset(path), path, "cannot be unpacked")


def test_a_bomb_ends_early(tmp_path, refusal, monkeypatch):
    from unistep.data import cifar

    monkeypatch.setattr(cifar, "_MOST_UNPACKED", 1 << 20)
    path = pack(tmp_path / "cifar.tar.gz", {"data_batch_1": bytes(8 << 20)})
    assert path.stat().st_size < 20_000
    refusal(lambda: open_dataset(path), path, "unpacks to more than 1,048,576 bytes")
    path = pack(tmp_path / "other.tar.gz", {"padding": bytes(8 << 20), "data_batch_1": batch(0, 4)})
    refusal(lambda: open_dataset(path), path, "unpacks to more than")


def test_a_member_that_is_there_twice(tmp_path, refusal):
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for folder in ("a", "b"):
            member = tarfile.TarInfo(f"{folder}/data_batch_1")
            member.size = len(batch(0, 4))
            archive.addfile(member, io.BytesIO(batch(0, 4)))
    refusal(lambda: open_dataset(path), path, "data_batch_1 is in it twice")
