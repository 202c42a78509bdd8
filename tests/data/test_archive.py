"""Zip archives of outside origin: one line, within bounds of memory and time."""

import io
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest

from unistep.data import DataConfig, open_dataset, read_dataset
from unistep.data.archive import ArchiveError, check_member, open_archive, unpack


@pytest.fixture
def archive(tmp_path, png):
    """`write({name: content or None, ...})`: a zip; None is a small image."""

    def write(members, method=zipfile.ZIP_DEFLATED):
        path = tmp_path / "set.zip"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that stand twice
            with zipfile.ZipFile(path, "w", method) as file:
                for name, content in members:
                    file.writestr(name, png(np.zeros((4, 5, 3), np.uint8)) if content is None else content)
        return str(path)

    return write


def test_names_that_lead_out_are_refused(archive, refusal):
    for name in ("../a.png", "/etc/a.png", "C:\\a.png", "a/../../b.png"):
        path = archive([("fine.png", None), (name, None)])
        refusal(lambda path=path: open_dataset(path), path, "leads out of the archive")


def test_an_image_that_is_there_twice_is_refused(archive, refusal):
    for first, second in (("a.png", "a.png"), ("cat/a.png", "cat\\a.png"), ("a.png", "./a.png")):
        path = archive([(first, None), (second, None)])
        refusal(lambda path=path: open_dataset(path), path, "there twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_bounds_are_refused(archive, refusal, method):
    path = archive([("a.png", None)], method)
    refusal(lambda: open_dataset(path), "a.png", "pack it by deflate")


def with_sizes(path, file_size):
    """The archive with another stated size of its members, in both headers."""
    content = bytearray(open(path, "rb").read())
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset : position + offset + 4] = file_size.to_bytes(4, "little")
            position = content.find(signature, position + 1)
    with open(path, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("size", [3, 70, 2**31 - 1, 2**32 - 2])
def test_lying_sizes_are_bad_files(archive, refusal, size):
    path = archive([("a.png", None)])
    with_sizes(path, size)
    refusal(lambda: open_dataset(path), "a.png", "`skip_bad=True`")


def test_a_bomb_takes_no_more_memory_than_it_states(archive, refusal):
    path = archive([("a.png", bytes(300 << 20))])
    with_sizes(path, 1000)
    tracemalloc.start()
    refusal(lambda: open_dataset(path), "a.png")
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("start", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0\x08\0\0\0"])
def test_a_bomb_in_an_image_is_a_bad_file(archive, refusal, start):
    path = archive([("a.png", start + bytes(100 << 20))])
    tracemalloc.start()
    refusal(lambda: open_dataset(path, resolution=8, channels=3), "a.png")
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_damage_is_one_line(archive, refusal):
    path = archive([(f"{i}.png", None) for i in range(5)])
    whole = open(path, "rb").read()
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 6):
            content[place] = rng.integers(256)
        with open(path, "wb") as file:
            file.write(content)
        try:
            read_dataset(DataConfig(path))
        except Exception:
            refusal(lambda: read_dataset(DataConfig(path)), path)


def test_long_names_are_short_in_messages(archive, refusal):
    path = archive([("x" * 60_000 + ".png", b"no image")])
    assert len(refusal(lambda: open_dataset(path), "...")) < 1000


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6" + bytes(18), b"PK\5\6" + b"\xff" * 18, bytes(1000)])
def test_what_is_no_archive(tmp_path, refusal, content):
    (tmp_path / "set.zip").write_bytes(content)
    refusal(lambda: open_dataset(str(tmp_path / "set.zip")), "set.zip")


def test_only_what_can_be_is_stated():
    member = zipfile.ZipInfo("a.png")
    member.compress_type, member.compress_size, member.file_size = zipfile.ZIP_DEFLATED, 100, 100 * 1032
    check_member(member)
    member.file_size = 10**6
    with pytest.raises(ArchiveError, match="cannot unpack"):
        check_member(member)


def test_the_best_packed_content_passes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr("zeros", bytes(10 << 20))
    with open_archive(buffer) as archive:
        member = archive.getinfo("zeros")
        assert member.compress_size < len(zlib.compress(bytes(10 << 20), 9)) + 100
        assert unpack(archive, member) == bytes(10 << 20)
        assert unpack(archive, member, 5) == bytes(5)
