"""WebDataset's shards as a dataset: labels, lists, faults, and members that are no plain files."""

import io
import json
import tarfile

import numpy as np
import pytest

from unistep.data import open_dataset
from unistep.data.inspect import inspect_source

CLASSES = [0, 0, 1, 1, 1, 1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shard(tmp_path):
    """Write a .tar of (name, content or TarInfo) pairs."""

    def write(name, entries, format=tarfile.USTAR_FORMAT):
        path = tmp_path / "shards" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w", format=format) as archive:
            for member, content in entries:
                if isinstance(content, tarfile.TarInfo):
                    archive.addfile(content)
                    continue
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def two(shard, pixels, png):
    """Two shards of three images, whose classes stand in the file of the given ending."""

    def write(ending="cls", content=lambda label: str(label).encode(), **options):
        for number in range(2):
            entries = []
            for i in range(3 * number, 3 * number + 3):
                entries += [(f"{i:04}.png", png(pixels[i])), (f"{i:04}.{ending}", content(CLASSES[i]))]
            path = shard(f"set-{number:06}.tar", entries, **options)
        return path.parent

    return write


def check(dataset, pixels, labels=CLASSES, names=None):
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert (None if dataset.labels is None else dataset.labels.tolist()) == labels
    assert dataset.class_names == names


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_folder_of_shards(two, pixels, format):
    check(open_dataset(two(format=format)), pixels)


@pytest.mark.parametrize("spelled", ["{}/set-{{000000..000001}}.tar", "{0}/set-000000.tar::{0}/set-000001.tar"])
def test_listed_shards(two, pixels, spelled):
    check(open_dataset(spelled.format(two())), pixels)


def test_one_shard(two, pixels):
    dataset = open_dataset(two() / "set-000000.tar", use_labels=False)
    check(dataset, pixels[:3], None)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("json", lambda label: json.dumps({"caption": "a", "label": label}).encode()),
        ("txt", lambda label: f"{label}\n".encode()),
    ],
)
def test_other_files_of_classes(two, pixels, ending, content):
    check(open_dataset(two(ending, content)), pixels)


def test_names_of_classes(two, pixels):
    check(
        open_dataset(two("txt", lambda label: ["dog", "cat"][label].encode())),
        pixels,
        [1, 1, 0, 0, 0, 0],
        ["cat", "dog"],
    )


@pytest.mark.parametrize(
    ("name", "content"), [("classes.txt", "dog\ncat\n"), ("dataset.json", '{"class_names": ["dog", "cat"]}')]
)
def test_names_beside_the_shards(two, pixels, name, content):
    folder = two()
    (folder / name).write_text(content)
    check(open_dataset(folder), pixels, names=["dog", "cat"])


def test_folders_in_shards_are_classes(shard, pixels, png):
    path = shard("a.tar", [(f"{'dog' if c else 'cat'}/{i}.png", png(pixels[i])) for i, c in enumerate(CLASSES)])
    check(open_dataset(path), pixels, names=["cat", "dog"])


def test_long_names(shard, pixels, png):
    names = [f"{'d' * 90}/{'ä' * 60}/{'x' * 100}{i}" for i in range(6)]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = shard("a.tar", [(f"{n}.png", png(p)) for n, p in zip(names, pixels, strict=True)], format=format)
        check(open_dataset(path), pixels, None)


def test_captions_are_no_classes(two, pixels, caplog):
    texts = iter("abcdef")
    check(open_dataset(two("txt", lambda _: f"a photo of {next(texts)}".encode())), pixels, None)
    assert "captions" in caplog.text


def test_masks_and_other_files_are_passed_over(shard, pixels, png, caplog):
    entries = []
    for i, image in enumerate(pixels):
        entries += [(f"{i}.seg.png", png(image * 0)), (f"{i}.png", png(image)), (f"{i}.mp3", b"x")]
    check(open_dataset(shard("a.tar", entries)), pixels, None)
    assert "6 .mp3 and 6 .seg.png were passed over" in caplog.text


def test_the_split_of_training(shard, pixels, png, caplog):
    shard("set-train-0.tar", [(f"{i}.png", png(p)) for i, p in enumerate(pixels)])
    path = shard("set-validation-0.tar", [("0.png", png(pixels[0]))])
    check(open_dataset(path.parent), pixels, None)
    assert "validation are passed over" in caplog.text


def test_folders_of_images_keep_their_archives(class_folder, pixels):
    with tarfile.open(class_folder / "backup.tar", "w") as archive:
        archive.add(class_folder / "cat" / "0.png")
    assert len(open_dataset(class_folder)) == 6


def test_the_index_is_kept_and_made_anew(two, shard, pixels, png, cache):
    folder = two()
    open_dataset(folder)
    (entry,) = (cache / "unistep/data").iterdir()
    before = entry.stat().st_mtime_ns
    open_dataset(folder)
    assert entry.stat().st_mtime_ns == before
    (entry / "index.json").write_text("damaged")
    check(open_dataset(folder), pixels)
    shard("set-000001.tar", [(f"{i}.png", png(p)) for i, p in enumerate(pixels[:2])])
    assert len(open_dataset(folder, use_labels=False)) == 5


def link(name, target="/etc/passwd", kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file_is_passed_over(shard, pixels, png, kind, caplog):
    entries = [(f"{i}.png", png(p)) for i, p in enumerate(pixels)]
    check(open_dataset(shard("a.tar", [link("x.png", kind=kind), *entries])), pixels, None)
    assert "1 that are no files was passed over" in caplog.text


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "C:\\x.png"])
def test_names_that_lead_out_are_refused(shard, pixels, png, refusal, name):
    path = shard("a.tar", [(name, png(pixels[0]))])
    refusal(lambda: open_dataset(path), "a.tar", "leads out of the archive")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: c[: len(c) // 2], "is cut off"),
        (lambda c: c[:2560], "of 2,560"),
        (lambda c: c[:2048] + bytes([c[2048] ^ 1]) + c[2049:], "the header at byte"),
    ],
)
def test_damaged_shards(two, refusal, damage, reason, caplog):
    folder = two()
    path = folder / "set-000001.tar"
    path.write_bytes(damage(path.read_bytes()))
    refusal(lambda: open_dataset(folder), "set-000001.tar is damaged", reason, "`skip_bad=True`")
    dataset = open_dataset(folder, skip_bad=True, use_labels=False)
    assert 3 <= len(dataset) < 6
    assert "the rest of it was left out" in caplog.text
    assert inspect_source(str(folder)).bad[0][0].endswith("set-000001.tar")


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"no archive" * 100, b"\x80" * 2048])
def test_what_is_no_archive(tmp_path, refusal, content):
    (tmp_path / "a.tar").write_bytes(content)
    refusal(lambda: open_dataset(tmp_path / "a.tar"), "a.tar")


def test_sizes_that_are_lies(shard, pixels, png, refusal):
    path = shard("a.tar", [(f"{i}.png", png(p)) for i, p in enumerate(pixels)], format=tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + (1 << 62).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    refusal(lambda: open_dataset(path), "a.tar", "cut off")


def test_sparse_members_are_named(shard, pixels, png, refusal):
    path = shard("a.tar", [(f"{i}.png", png(p)) for i, p in enumerate(pixels)], format=tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    content[156:157] = b"S"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    refusal(lambda: open_dataset(path), "a.tar/0.png", "sparse")
    assert len(open_dataset(path, skip_bad=True)) == 5


def test_a_broken_image_is_named_with_its_shard(shard, pixels, png, refusal):
    path = shard("a.tar", [("a.png", png(pixels[0])), ("b.png", b"broken")])
    refusal(lambda: open_dataset(path), "a.tar/b.png", "`skip_bad=True`")
    dataset = open_dataset(path, skip_bad=True)
    assert len(dataset) == 1 and "b.png" in dataset.skipped[0]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("a.cls", b"1"), ("b.cls", b"")], ["b.cls", "it holds no class"]),
        ([("a.cls", b"1"), ("b.json", b"{")], ["b.json", "it is not JSON"]),
        ([("a.cls", b"1")], ["a.tar/b.png has no class beside it"]),
        ([("a.cls", b"1"), ("b.cls", b"-1")], ["-1"]),
        ([("a.cls", b"1"), ("b.cls", b"900000000")], ["900000000"]),
    ],
)
def test_bad_classes(shard, pixels, png, refusal, entries, words):
    entries = sorted([("a.png", png(pixels[0])), ("b.png", png(pixels[1])), *entries])
    path = shard("a.tar", entries)
    refusal(lambda: open_dataset(path), *words)
    check(open_dataset(path, use_labels=False), pixels[:2], None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("set-{000000..000003}.tar", ["set-000002.tar and 1 more of 4 shards are missing"]),
        ("set-{000003..000000}.tar", ["{000003..000000}", "no range"]),
        ("set-{0..999999999}.tar", ["no range"]),
    ],
)
def test_bad_lists(two, refusal, source, words):
    folder = two()
    refusal(lambda: open_dataset(f"{folder}/{source}"), *words)


def test_compressed_shards_are_refused(tmp_path, refusal):
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz"):
        pass
    refusal(lambda: open_dataset(tmp_path / "a.tar.xz"), "unpack it to a .tar")
