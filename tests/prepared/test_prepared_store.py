"""The cache of prepared models: whole entries or none."""

import os
import threading
import time
from pathlib import Path

import pytest

from unistep.errors import UserError
from unistep.prepared.store import clear, digest_of_files, entries, key_of, making, read_entry, write_about

KEY = key_of({"weights": "1"})


def make(root: Path, content: bytes = b"trunk") -> bool:
    with making(root, KEY) as folder:
        if folder is None:
            return False
        (folder / "trunk.xml").write_bytes(content)
        write_about(folder, {"runtime": "openvino"})
        return True


def test_an_entry_is_made_once(tmp_path: Path):
    assert read_entry(tmp_path, KEY) is None
    assert make(tmp_path)
    assert not make(tmp_path, b"another")
    entry = read_entry(tmp_path, KEY)
    assert entry is not None and (entry.folder / "trunk.xml").read_bytes() == b"trunk"
    assert [e.key for e in entries(tmp_path)] == [KEY] and entry.num_bytes == 5


def test_keys_depend_on_every_part():
    assert key_of({"a": "1", "b": "2"}) == key_of({"b": "2", "a": "1"}) != key_of({"a": "1", "b": "3"})


@pytest.mark.parametrize("damage", ["shorter", "gone", "no record", "nonsense", "a link to nothing"])
def test_a_damaged_entry_is_made_again(damage: str, tmp_path: Path):
    make(tmp_path)
    trunk, about = tmp_path / KEY / "trunk.xml", tmp_path / KEY / "about.json"
    if damage == "shorter":
        trunk.write_bytes(b"tr")
    elif damage == "nonsense":
        about.write_text('{"files": 3}')
    elif damage == "no record":
        about.unlink()
    else:
        trunk.unlink()
        if damage == "a link to nothing":
            trunk.symlink_to("nowhere")
    assert read_entry(tmp_path, KEY) is None
    assert make(tmp_path, b"again")
    assert (tmp_path / KEY / "trunk.xml").read_bytes() == b"again"


def test_an_error_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError), making(tmp_path, KEY) as folder:
        assert folder is not None
        (folder / "trunk.xml").write_bytes(b"half")
        raise RuntimeError
    assert read_entry(tmp_path, KEY) is None
    assert not list(tmp_path.rglob("trunk.xml")) and make(tmp_path)


def test_what_a_killed_process_left_is_deleted(tmp_path: Path):
    left = tmp_path / ".making" / KEY / "new"
    left.mkdir(parents=True)
    (left / "trunk.bin").write_bytes(b"half")
    assert make(tmp_path)
    assert not (tmp_path / KEY / "trunk.bin").exists()


def test_the_second_waits_for_the_first(tmp_path: Path):
    made = []
    begun = threading.Event()

    def first() -> None:
        with making(tmp_path, KEY) as folder:
            assert folder is not None
            begun.set()
            time.sleep(0.3)
            (folder / "trunk.xml").write_bytes(b"first")
            write_about(folder, {})

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    made.append(make(tmp_path, b"second"))
    thread.join()
    assert made == [False] and (tmp_path / KEY / "trunk.xml").read_bytes() == b"first"


def test_clear_deletes_everything(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "broken").mkdir()
    assert clear(tmp_path) == 2
    assert entries(tmp_path) == [] and clear(tmp_path) == 0
    assert clear(tmp_path / "nowhere") == 0


def test_digests_are_of_contents(tmp_path: Path):
    root, file = tmp_path / "cache", tmp_path / "weights.bin"
    file.write_bytes(b"one")
    one = digest_of_files(root, [file])
    assert one == digest_of_files(root, [file])
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert one != digest_of_files(root, [file])
    (root / ".digests.json").write_text("nonsense")
    assert one != digest_of_files(root, [file])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_is_not_writable(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        make(tmp_path)
