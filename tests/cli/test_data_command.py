import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(here):
    """`photos/` with three grey images of 8 x 8 pixels, and cat/ and dog/ beside them."""
    for i, name in enumerate(("cat/0.png", "cat/1.png", "dog/2.png")):
        path = here / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 51 * i, np.uint8)).save(path)
    return here / "photos"


@pytest.fixture
def broken(photos):
    """`photos/` with two more files that are no images."""
    for name in ("cat/bad.png", "dog/worse.jpg"):
        (photos / name).write_bytes(b"not an image")
    return photos


def test_a_bundled_set(run):
    outcome = run("data", "inspect", "mnist-test")
    assert outcome.code == 0
    for text in ("10,000 readable, 0 not", "28x28: 10,000", "1 (grey)", "10 classes", "7: 1,028", "0.13251", "0.31048"):
        assert text in outcome.out


def test_a_folder(run, photos):
    outcome = run("data", "inspect", "photos")
    assert outcome.code == 0
    for text in ("3 readable, 0 not", "8x8: 3", "2 classes", "cat: 2", "dog: 1", "0.20000"):
        assert text in outcome.out


def test_an_npz(run, here):
    images = np.zeros((4, 6, 5, 3), np.uint8)
    images[..., 1] = 255
    np.savez(here / "a.npz", arr_0=images, arr_1=np.array([0, 1, 1, 1]))
    outcome = run("data", "inspect", "a.npz")
    assert outcome.code == 0
    for text in ("4 readable, 0 not", "5x6: 4", "3 (colour)", "0.00000, 1.00000, 0.00000", "2 classes", "1: 3"):
        assert text in outcome.out


def test_a_broken_image_is_named(run, refused, broken):
    """And all that was found is shown all the same."""
    refused(["data", "inspect", "photos"], "photos/cat/bad.png", "2 bad in all", "mend or remove", "--skip-bad")
    out = run("data", "inspect", "photos").out
    assert "3 readable, 2 not" in out


@pytest.mark.parametrize("flag", ["--skip-bad", "--skip_bad"])
@pytest.mark.parametrize("first", [True, False])
def test_skip_bad_counts_and_lists(run, broken, flag, first):
    outcome = run("data", "inspect", *([flag, "photos"] if first else ["photos", flag]))
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("3 readable, 2 not", "photos/cat/bad.png", "photos/dog/worse.jpg", "8x8: 3"):
        assert text in outcome.out


def test_sources_that_are_none(refused, here):
    (here / "empty").mkdir()
    (here / "text.txt").write_text("no image")
    (here / "fake.npz").write_text("no archive")
    (here / "fake.zip").write_text("no archive")
    np.savez(here / "floats.npz", arr_0=np.zeros((2, 4, 4, 3)))
    for name, words in {
        "nowhere": "nowhere no such file, folder or bundled dataset",
        "mnits": "mnits did you mean mnist?",
        "tex.txt": "tex.txt did you mean text.txt?",
        "empty": "empty no images",
        "text.txt": "text.txt folder of images, a .zip or an .npz",
        "fake.npz": "fake.npz damaged",
        "fake.zip": "fake.zip damaged",
        "floats.npz": "floats.npz uint8",
        "": "empty",
    }.items():
        refused(["data", "inspect", name], *words.split())


def test_wrong_arguments(refused, photos):
    refused(["data"], "unistep data inspect PATH")
    refused(["data", "inspect"], "PATH is missing")
    refused(["data", "inspect", "--skip-bad"], "PATH is missing")
    refused(["data", "inspekt", "photos"], "'inspekt'", "did you mean data inspect?")
    refused(["data", "photos"], "'photos'", "data inspect")
    refused(["data", "inspect", "photos", "more"], "unexpected argument more")
    refused(["data", "inspect", "photos", "--skpi-bad"], "unknown option --skpi-bad", "did you mean --skip-bad?")


def test_packing_and_reading_again(run, refused, photos):
    outcome = run("data", "pack", "photos", "packed", "--max-part-mb", "0.01")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0].startswith("packed: 3 images, 0.0 MB (")
    assert "part-1-of-1.zip" in outcome.out
    assert "cat: 2" in run("data", "inspect", "packed").out
    refused(["data", "pack", "photos", "packed"], "packed is already there", "OUTPUT")
    refused(["data", "pack", "photos"], "OUTPUT")
    refused(["data", "pack", "photos", "other", "--max-part-mb", "0"], "--max-part-mb", "at least 0.01")


def test_fetching(run, refused, monkeypatch, here):
    from unistep.workflows import fetch

    made = fetch.FetchedDataset("mnist", "digits", (here / "a.gz",), (), 1)
    (here / "a.gz").write_bytes(b"a")
    monkeypatch.setattr(fetch, "fetch", lambda dataset, progress: made)
    outcome = run("data", "fetch", "mnist")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[:2] == ["mnist: digits", "data: mnist, mnist-test (bundled, the same images)"]
    refused(["data", "fetch", "cifar100"], "did you mean cifar10?")
    refused(["data", "fetch"], "NAME")
