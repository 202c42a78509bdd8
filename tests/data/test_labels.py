"""Labels from dataset.json and from class subfolders."""

import json

import pytest

from unistep.data.labels import labels_from_folders, labels_from_json

NAMES = ["00000/img0.png", "00000/img1.png", "00001/img2.png"]


def parse(document):
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return labels_from_json(content, "set.zip/dataset.json", NAMES)


def test_pairs_in_any_order():
    labels = parse({"labels": [[NAMES[2], 3], [NAMES[0], 7], [NAMES[1], 0]]})
    assert labels.values.tolist() == [7, 0, 3]
    assert labels.names is None


def test_windows_separators():
    assert parse({"labels": [[name.replace("/", "\\"), 1] for name in NAMES]}).values.tolist() == [1, 1, 1]


@pytest.mark.parametrize("document", [{"labels": None}, {}])
def test_no_labels(document):
    assert parse(document) is None


@pytest.mark.parametrize(
    "document",
    [
        b"{not json",
        b"\xff\xfe",
        b"[" * 100_000,
        [1, 2],
        {"labels": 3},
        {"labels": [NAMES[0]]},
        {"labels": [[NAMES[0], "cat"]]},
        {"labels": [[NAMES[0], True]]},
        {"labels": [[NAMES[0], [0.5, 0.5]]]},
        {"labels": [[NAMES[0], -1]]},
        {"labels": [[5, 1]]},
    ],
)
def test_other_forms_are_refused(refusal, document):
    refusal(lambda: parse(document), "set.zip/dataset.json")


def test_absent_files_are_refused(refusal):
    pairs = [[name, 0] for name in [*NAMES, "00009/gone\n.png"]]
    refusal(lambda: parse({"labels": pairs}), "set.zip/dataset.json", "00009/gone\\n.png", "1 of 4")


def test_images_without_a_label_are_refused(refusal):
    refusal(lambda: parse({"labels": [[NAMES[0], 0]]}), "set.zip/dataset.json", NAMES[1], "2 of 3")


@pytest.mark.parametrize(
    ("names", "values", "classes"),
    [
        (["cat/1.png", "cat/2.png", "dog/1.png"], [0, 0, 1], ["cat", "dog"]),
        (["cat/a/1.png", "cat/b/2.png", "dog/1.png"], [0, 0, 1], ["cat", "dog"]),
        (["set/train/10/1.png", "set/train/9/1.png"], [1, 0], ["9", "10"]),
        (["ab/1.png", "a/1.png"], [1, 0], ["a", "ab"]),
    ],
)
def test_class_subfolders(names, values, classes):
    labels = labels_from_folders(names)
    assert labels.values.tolist() == values
    assert labels.names == classes


@pytest.mark.parametrize("names", [[], ["1.png", "2.png"], ["all/1.png", "all/2.png"], ["1.png"]])
def test_one_folder_is_no_class(names):
    assert labels_from_folders(names) is None


@pytest.mark.parametrize(
    ("names", "loose"),
    [(["cat/1.png", "dog/2.png", "cover.png"], "cover.png"), (["all/cat/1.png", "all/x.png"], "all/x.png")],
)
def test_loose_images_put_an_end_to_labels_with_a_warning(names, loose, caplog):
    assert labels_from_folders(names) is None
    assert loose in caplog.text
