"""Packing into shards: the same images from any source, the same bytes however they are made, and what is rejected."""

import hashlib
import json
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

import unistep
from unistep.data import open_dataset


def pack(source, output, **options):
    options = {"format": "shards", "progress": False, "workers": 1, "shard_images": 4, **options}
    return unistep.pack_dataset(source, output, **options)


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def zipped(tmp_path, pixels, png):
    """A .zip of 12 images in two class folders, of which the numbers given are broken."""

    def write(broken=()):
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(12):
                content = b"broken" if i in broken else png(pixels[i % 6])
                archive.writestr(f"{'dog' if i >= 8 else 'cat'}/{i:02}.png", content)
        return path

    return write


def test_a_folder_becomes_shards_of_the_same_files(class_folder, tmp_path, pixels):
    made = pack(class_folder, tmp_path / "out")
    assert [path.name for path in made.parts] == ["shard-000000.tar", "shard-000001.tar"] and made.num_images == 6
    dataset = open_dataset(made.path)
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 1] and dataset.class_names == ["cat", "dog"]
    about = json.loads((made.path / "dataset.json").read_text())
    assert (about["images"], about["channels"], about["height"], about["width"]) == (6, 3, 4, 5)
    content = (made.path / "shard-000001.tar").read_bytes()
    assert about["shards"][1]["sha256"] == hashlib.sha256(content).hexdigest() and about["shards"][1]["images"] == 2
    assert not (made.path / ".packing").exists() and made.to_dict()["rejected"] == []

    assert (class_folder / "dog" / "2.png").read_bytes() in made.parts[0].read_bytes()


@pytest.mark.parametrize("channels", [1, None])
def test_prepared_images_are_those_of_the_source(class_folder, tmp_path, channels):
    made = pack(class_folder, tmp_path / "out", resolution=3, channels=channels)
    assert open_dataset(made.path).images.equal(open_dataset(class_folder, resolution=3, channels=channels).images)


def test_arrays_become_shards(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", np.concatenate([pixels] * 3)[..., 0], np.arange(18) % 3)
    made = pack(tmp_path / "a.npz", tmp_path / "out", class_names=["x", "y", "z"])
    dataset, source = open_dataset(made.path), open_dataset(tmp_path / "a.npz")
    assert dataset.images.equal(source.images) and dataset.labels.equal(source.labels) and dataset.channels == 1
    assert dataset.class_names == ["x", "y", "z"] and len(made.parts) == 5


def test_shards_are_the_same_bytes_however_they_are_made(zipped, tmp_path):
    source = zipped(broken=[5])
    folders = [pack(source, tmp_path / f"out{workers}", workers=workers).path for workers in (1, 2)]
    assert sums(folders[0]) == sums(folders[1])


def test_what_is_rejected_is_named(zipped, tmp_path, refusal):
    made = pack(zipped(broken=[1, 9]), tmp_path / "out")
    assert [name.rpartition("/")[2] for name, _ in made.rejected] == ["01.png", "09.png"] and made.num_images == 10
    listed = json.loads((made.path / "rejected.json").read_text())
    assert [one["name"] for one in listed] == [name for name, _ in made.rejected]
    assert "2 of 12 images, first" in made.rows()[1][1] and "rejected.json" in made.rows()[1][1]
    assert open_dataset(made.path).labels.tolist() == [0] * 7 + [1] * 3
    refusal(lambda: pack(zipped(broken=range(12)), tmp_path / "none"), "none of its images can be read", "00.png")


def test_an_image_that_kills_its_process_is_rejected(zipped, tmp_path, monkeypatch):
    from unistep.data import encode_pool

    real = encode_pool.EncodePool._try

    def fragile(self, images):
        return (None, "was killed by signal 11") if any(b"broken" in one for one in images) else real(self, images)

    monkeypatch.setattr(encode_pool.EncodePool, "_try", fragile)
    made = pack(zipped(broken=[2]), tmp_path / "out")
    assert made.num_images == 11 and "signal 11" in made.rejected[0][1]


def test_a_packing_that_was_broken_off_goes_on(zipped, tmp_path, monkeypatch, refusal):
    from unistep.data import pack_shards

    source, whole = zipped(broken=[1]), tmp_path / "whole"
    pack(source, whole)
    real, out = pack_shards._Packing._write, tmp_path / "out"

    def stopping(self, number, record):
        if number == 1:
            raise KeyboardInterrupt
        real(self, number, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack_shards._Packing, "_write", stopping)
        pack(source, out)
    assert sorted(path.name for path in out.iterdir()) == [".packing", "shard-000000.tar"]
    refusal(lambda: open_dataset(out), "its packing was broken off", "data pack")
    refusal(lambda: pack(source, out, resolution=3), "another packing was broken off")
    refusal(lambda: pack(source, out, shard_images=5), "another packing was broken off")
    (out / "shard-000000.tar").touch()
    made = pack(source, out)
    assert made.former == 1 and "1 of them from before" in made.rows()[0][1]
    assert sums(out) == sums(whole) and len(made.rejected) == 1


def test_folders_with_something_else_are_left_alone(class_folder, tmp_path, refusal):
    refusal(lambda: pack(class_folder, class_folder), "it is there already")
    (tmp_path / "file").write_text("x")
    refusal(lambda: pack(class_folder, tmp_path / "file"), "it is there already")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_part_mb": 3}, "max_part_mb"),
        ({"format": "parts"}, "shard_images"),
        ({"format": "parts", "shard_images": None}, "workers"),
        ({"shard_images": 0}, "shard_images"),
        ({"workers": 0}, "workers"),
        ({"resolution": 0}, "resolution"),
        ({"format": "tar"}, "format"),
        ({"class_names": ["a"]}, "class_names"),
    ],
)
def test_arguments(class_folder, tmp_path, refusal, options, name):
    refusal(lambda: pack(class_folder, tmp_path / "out", **options), f"`{name}`")


def test_packed_shards_are_streamed_without_a_look_at_each(class_folder, tmp_path, monkeypatch):
    from unistep.data import read_dataset
    from unistep.data.config import DataConfig
    from unistep.data.shards import ShardReader

    made = pack(class_folder, tmp_path / "out", resolution=4)
    monkeypatch.setattr(ShardReader, "shape", lambda *_: pytest.fail("it looked"))
    dataset = read_dataset(DataConfig(str(made.path), stream=True, workers=1))
    assert dataset.images.shape == (6, 3, 4, 4)
    assert dataset.images[:].equal(open_dataset(class_folder, resolution=4).images)
    dataset.images.close()


@pytest.mark.slow
def test_killed_packings_end_in_the_same_bytes(tmp_path, pixels):
    """SIGKILL at ten moments, each followed by another; then one that ends."""
    images = np.random.default_rng(0).integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images)
    code = "import sys, unistep; unistep.pack_dataset(sys.argv[1], sys.argv[2], format='shards', shard_images=200)"
    command = [sys.executable, "-c", code, str(tmp_path / "a.npz")]
    for moment in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "out")])
        time.sleep(0.5 + 0.15 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for output in ("out", "whole"):
        if not (tmp_path / output / "dataset.json").exists():
            subprocess.run([*command, str(tmp_path / output)], check=True)
    assert sums(tmp_path / "out") == sums(tmp_path / "whole")
