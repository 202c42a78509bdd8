"""Labels are those of dataset.json, of metadata, or of class folders; what is unclear is said or refused."""

import json
import os
import zipfile

import numpy as np
import pytest

from unistep.data import open_dataset
from unistep.data.classes import MOST_LABEL, classes_line
from unistep.data.inspect import inspect_source
from unistep.errors import UserError


@pytest.fixture(params=["folder", "zip"])
def source(request, tmp_path, png):
    """`make({name: text or None, ...})`: a folder or a zip; None is a small image."""

    def make(files):
        image = png(np.zeros((4, 5, 3), np.uint8))
        root = tmp_path / "set"
        if request.param == "zip":
            with zipfile.ZipFile(f"{root}.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, image if content is None else content)
            return f"{root}.zip"
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(image if content is None else content.encode())
        return str(root)

    return make


def images(*names):
    return dict.fromkeys(names)


def labelled(pairs):
    return json.dumps({"labels": pairs})


EDM = [f"{i // 3:05d}/img{i:08d}.png" for i in range(6)]
PAIRS = [[name, i % 3] for i, name in enumerate(EDM)]


# ---------------------------------------------------------------------------------------------------- dataset.json


@pytest.mark.parametrize("folder", ["", "mydata/"])
def test_dataset_json_beside_the_images(source, folder):
    files = {**images(*(folder + name for name in EDM)), f"{folder}dataset.json": labelled(PAIRS)}
    assert open_dataset(source(files)).labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("folder", ["", "mydata/"])
def test_dataset_json_without_labels(source, folder):
    dataset = open_dataset(source({**images(*(folder + n for n in EDM)), f"{folder}dataset.json": labelled(None)}))
    assert dataset.labels is None and dataset.class_names is None


def test_names_in_other_spellings(source):
    pairs = [["./" + name.replace("/", "\\"), label] for name, label in PAIRS]
    assert open_dataset(source({**images(*EDM), "dataset.json": labelled(pairs)})).labels.tolist()[:3] == [0, 1, 2]


def test_a_deeper_dataset_json_is_said_to_be_unused(source, caplog):
    files = {**images("a/b/cat/1.png", "a/b/dog/1.png"), "a/b/dataset.json": "{"}
    assert open_dataset(source(files)).class_names == ["cat", "dog"]
    assert "a/b/dataset.json: it is not used" in caplog.text


def test_a_second_dataset_json_is_said_to_be_unused(source, caplog):
    files = {**images(*EDM), "dataset.json": labelled(PAIRS), "00000/dataset.json": "{"}
    assert open_dataset(source(files)).labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert "00000/dataset.json: it is not used" in caplog.text


def test_two_datasets_side_by_side_are_refused(source, refusal):
    files = {**images("one/1.png", "two/1.png"), "one/dataset.json": "{}", "two/dataset.json": "{}"}
    refusal(lambda: open_dataset(source(files)), "one/dataset.json", "two/dataset.json", "two datasets", "give")


def test_images_beside_the_dataset_are_refused(source, refusal):
    files = {**images(*(f"my/{name}" for name in EDM), "other.png"), "my/dataset.json": labelled(PAIRS)}
    refusal(lambda: open_dataset(source(files)), "no label for other.png")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([["a.png", 0], ["a.png", 1]], "two labels"),
        ([["a.png", 0], ["./a.png", 1]], "two labels"),
        ([["a.png", MOST_LABEL + 1]], "0 to 100,000"),
        ([["a.png", 10**30]], "0 to 100,000"),
        ([["a.png", 10**4000]], "0 to 100,000"),
        ([["a.png", -(10**30)]], "0 to 100,000"),
        ([["a.png", 1.0]], "pair"),
        ([["a.png", True]], "pair"),
        ([["a.png", None]], "pair"),
        ([["a.png", 70_000]], "have no image"),
    ],
)
def test_labels_that_are_refused(source, refusal, pairs, words):
    line = refusal(lambda: open_dataset(source({**images("a.png"), "dataset.json": labelled(pairs)})), words)
    assert len(line) < 500


@pytest.mark.parametrize(
    "text",
    [
        '{"labels": [["a.png", 0]], "labels": null}',
        '{"labels": {"a.png": 0, "a.png": 1}}',
        '{"labels": [["a.png", 1' + "0" * 5000 + "]]}",
        "[" * 3000 + "]" * 3000,
        '{"labels": ' + "[" * 3000 + "]" * 3000 + "}",
        "",
        "\ufeff",
        "NaN",
        '{"labels": NaN}',
    ],
)
def test_texts_that_are_refused(source, refusal, text):
    refusal(lambda: open_dataset(source({**images("a.png"), "dataset.json": text})), "dataset.json")


def test_a_byte_order_mark_is_read(source):
    text = "\ufeff" + labelled([["a.png", 0]])
    assert open_dataset(source({**images("a.png"), "dataset.json": text})).labels.tolist() == [0]


@pytest.mark.parametrize("name", ["dataset.json", "metadata.jsonl", "metadata.csv"])
def test_documents_have_a_size_limit(source, refusal, name):
    files = {**images("a.png"), name: " " * ((1 << 20) + 5000)}
    refusal(lambda: open_dataset(source(files)), name, "make sense for 1 images")


@pytest.mark.parametrize("name", ["metadata.csv", "dataset.json"])
def test_an_endless_document_is_refused(tmp_path, png, name):
    (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    os.symlink("/dev/zero", tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no file; remove or replace it"):
        open_dataset(str(tmp_path))


def test_few_classes_without_images_are_said(source, caplog):
    pairs = [["a.png", 0], ["b.png", 2], ["c.png", 3]]
    dataset = open_dataset(source({**images("a.png", "b.png", "c.png"), "dataset.json": labelled(pairs)}))
    assert dataset.num_classes == 4
    assert "1 of the classes 0 to 3 have no image (1)" in caplog.text


def test_labels_of_an_npz_are_held_to_the_same(tmp_path, refusal, caplog):
    path = str(tmp_path / "set.npz")
    for labels, words in (
        ([0, 100_001], "0 to 100,000"),
        ([0, 90_000], "have no image"),
        (np.array([0, 2**64 - 1], np.uint64), "0 to 100,000"),
    ):
        np.savez(path, arr_0=np.zeros((2, 4, 4), np.uint8), arr_1=labels)
        refusal(lambda: open_dataset(path), path, words)
    np.savez(path, arr_0=np.zeros((2, 4, 4), np.uint8), arr_1=[0, 2])
    assert open_dataset(path).num_classes == 3
    assert "have no image (1)" in caplog.text


# ---------------------------------------------------------------------------------------------------- class folders


@pytest.mark.parametrize("names", [EDM, [f"{i - i % 2:06d}/{i:06d}.png" for i in range(6)]])
def test_running_folders_are_no_classes(source, caplog, names):
    assert open_dataset(source(images(*names))).labels is None
    assert "number the images and are no classes" in caplog.text


def test_class_folders_may_have_such_names(source):
    dataset = open_dataset(source(images("00000/1.png", "00000/2.png", "00001/1.png")))
    assert dataset.class_names == ["00000", "00001"]


@pytest.mark.parametrize("form", ["{}", "{:02d}", "{:04d}"])
def test_numbers_are_in_their_order(source, form):
    dataset = open_dataset(source(images(*(f"{form.format(i)}/a.png" for i in range(12)))))
    assert dataset.class_names == [form.format(i) for i in range(12)]
    assert dataset.num_classes == 12


def test_other_numbers_than_the_classes_are_said(source, caplog):
    assert open_dataset(source(images(*(f"{i}/a.png" for i in (1, 2, 10))))).class_names == ["1", "2", "10"]
    assert "class 0 is 1, class 2 is 10" in caplog.text


def test_names_among_numbers_are_text(source):
    assert open_dataset(source(images("2/a.png", "10/a.png", "cat/a.png"))).class_names == ["10", "2", "cat"]


def test_one_number_twice_is_refused(source, refusal):
    refusal(lambda: open_dataset(source(images("1/a.png", "01/a.png"))), "the same number")


@pytest.mark.parametrize(
    "splits",
    [
        ("train", "test"),
        ("Train", "VAL"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("valid", "validation"),
    ],
)
@pytest.mark.parametrize("above", ["", "photos/"])
def test_splits_are_refused(source, refusal, splits, above):
    files = images(*(f"{above}{split}/{name}/1.png" for split in splits for name in ("cat", "dog")))
    path = source(files)
    line = refusal(lambda: open_dataset(path), "splits", "`use_labels=False`")
    assert f"{above}{splits[0]}" in line and "give" in line
    assert open_dataset(path, use_labels=False).labels is None
    assert "splits" in inspect_source(path).label_error


def test_splits_without_classes_are_refused(source, refusal):
    refusal(lambda: open_dataset(source(images("train/1.png", "test/2.png"))), "splits")
    for name in ("extra", "unlabeled", "unlabelled", "holdout", "hold-out"):
        refusal(lambda other=name: open_dataset(source(images("train/1.png", f"{other}/2.png"))), "splits", "train")


@pytest.mark.parametrize("names", [["train", "bus"], ["trains", "tests"], ["testing grounds", "training"]])
def test_classes_that_are_called_nearly_so(source, names):
    assert open_dataset(source(images(*(f"{name}/1.png" for name in names)))).class_names == sorted(names)


def test_splits_of_two_domains_are_refused(source, refusal):
    names = [f"{split}/1.png" for split in ("testA", "testB", "trainA", "trainB")]
    refusal(lambda: open_dataset(source(images(*names))), "splits", "trainA")


def test_splits_within_classes_are_said(source, caplog):
    files = images(*(f"{name}/{split}/1.png" for split in ("train", "test") for name in ("cat", "dog")))
    assert open_dataset(source(files)).class_names == ["cat", "dog"]
    assert "its classes hold the splits test and train" in caplog.text


# ---------------------------------------------------------------------------------------------------- metadata


def rows(*pairs, column="label"):
    return "\n".join(json.dumps({"file_name": name, column: label}) for name, label in pairs)


def test_names_of_jsonl(source):
    text = rows(("b.png", "dog"), ("a.png", "cat"), ("c.png", "cat"))
    dataset = open_dataset(source({**images("a.png", "b.png", "c.png"), "metadata.jsonl": text}))
    assert dataset.labels.tolist() == [0, 1, 0] and dataset.class_names == ["cat", "dog"]


def test_numbers_of_jsonl(source):
    text = rows(("b.png", 1), ("a.png", 0), column="class")
    dataset = open_dataset(source({**images("a.png", "b.png"), "metadata.jsonl": text}))
    assert dataset.labels.tolist() == [0, 1] and dataset.class_names is None


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("file_name,label\na.png,1\nb.png,0\n", [1, 0], None),
        ('\ufefffile_name,text,label\r\na.png,"a, b",dog\r\nb.png,,cat\r\n', [1, 0], ["cat", "dog"]),
        ("label,file_name\n2,a.png\nten,b.png\n", [0, 1], ["2", "ten"]),
    ],
)
def test_csv(source, text, labels, names):
    dataset = open_dataset(source({**images("a.png", "b.png"), "metadata.csv": text}))
    assert dataset.labels.tolist() == labels and dataset.class_names == names


def test_metadata_of_the_folder_that_it_is_in(source):
    text = "file_name,label\n1.png,cat\nsub\\2.png,dog\n"
    dataset = open_dataset(source({**images("train/1.png", "train/sub/2.png"), "train/metadata.csv": text}))
    assert dataset.class_names == ["cat", "dog"]


@pytest.mark.parametrize("text", ["file_name,text\na.png,hello\n", "name,label\na.png,1\n", ""])
def test_metadata_without_labels_is_said_to_be_unused(source, caplog, text):
    dataset = open_dataset(source({**images("cat/a.png", "dog/b.png"), "metadata.csv": text}))
    assert dataset.class_names == ["cat", "dog"]
    assert "metadata.csv: it is not used for labels" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rows(("a.png", 0), ("a.png", 1), ("b.png", 0)), "two labels"),
        (rows(("a.png", 0), ("b.png", "cat")), "some labels are numbers"),
        (rows(("a.png", 0)), "no label for b.png"),
        (rows(("a.png", 0), ("b.png", 0), ("c.png", 0)), "c.png, which is not there"),
        (rows(("a.png", 0.5), ("b.png", 0)), "0.5"),
        (rows(("a.png", True), ("b.png", 0)), "True"),
        (rows(("a.png", None), ("b.png", 0)), "None"),
        (rows(("a.png", -1), ("b.png", 0)), "-1"),
        (rows(("a.png", 10**30), ("b.png", 0)), "0 to 100,000"),
        (rows(("a.png", ["cat"]), ("b.png", 0)), "cat"),
        (rows(("a.png", " "), ("b.png", "cat")), "empty label"),
        (rows((3, "cat")), "row 1 has no file_name"),
        ("[1, 2]", "no JSON object"),
        ("{", "JSON object on each line"),
        ('{"file_name": "a.png", "file_name": "b.png", "label": 1}', "JSON object on each line"),
    ],
)
def test_metadata_that_is_refused(source, refusal, text, words):
    files = {**images("a.png", "b.png"), "metadata.jsonl": text}
    refusal(lambda: open_dataset(source(files)), "metadata.jsonl", words)


@pytest.mark.parametrize(
    "text",
    [
        'file_name,label\n"a.png,1',
        "file_name,label\na.png,-1\nb.png,0",
        "file_name,label\na.png,9" + "0" * 5000 + "\nb.png,0",
    ],
)
def test_tables_that_are_refused(source, refusal, text):
    refusal(lambda: open_dataset(source({**images("a.png", "b.png"), "metadata.csv": text})), "metadata.csv")


def test_metadata_that_is_no_text(tmp_path, png, refusal):
    (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    (tmp_path / "metadata.csv").write_bytes(b"file_name,label\n\xff\xfe,1\n")
    refusal(lambda: open_dataset(str(tmp_path)), "metadata.csv", "not CSV")


@pytest.mark.parametrize(
    "others",
    [
        {
            "dataset.json": labelled([["cat/a.png", 0], ["dog/b.png", 1]]),
            "metadata.jsonl": rows(("cat/a.png", 1), ("dog/b.png", 0)),
        },
        {"metadata.csv": "file_name,label\ncat/a.png,dog\ndog/b.png,cat\n"},
        {"metadata.csv": "file_name,label\ncat/a.png,0\ndog/b.png,1\n", "metadata.jsonl": rows(("cat/a.png", 1))},
    ],
)
def test_sources_that_contradict_each_other_are_refused(source, refusal, others):
    line = refusal(lambda: open_dataset(source({**images("cat/a.png", "dog/b.png"), **others})))
    assert "contradicting" in line or "two labels" in line


def test_sources_that_agree(source):
    others = {
        "dataset.json": labelled([["cat/a.png", 1], ["dog/b.png", 0]]),
        "metadata.jsonl": rows(("cat/a.png", "dog"), ("dog/b.png", "cat")),
    }
    assert open_dataset(source({**images("cat/a.png", "dog/b.png"), **others})).labels.tolist() == [1, 0]


CONTRADICTING = [  # class folders, and labels of which one image has another; both as they are numbered or named
    (["cat/1", "dog/2"], ["dog", "dog"]),
    (["cat/1", "dog/2"], ["cat", "cat"]),
    (["cat/1", "cat/2", "dog/3", "fox/4"], ["cat", "dog", "dog", "fox"]),
    (["0/1", "1/2"], [1, 0]),
    (["0/1", "1/2", "2/3"], [0, 1, 1]),
    (["00/1", "01/2", "02/3"], [0, 1, 1]),
    (["cat/1", "cat/2", "dog/3", "dog/4"], [0, 1, 1, 1]),
    (["cats/1", "cats/2", "dogs/3", "dogs/4"], ["dog", "cat", "dog", "dog"]),
    (["top/cat/1", "top/dog/2"], ["dog", "cat"]),
]
AGREEING = [  # folders that say the same, less, more, or nothing about classes
    (["cat/1", "dog/2"], ["cat", "dog"]),
    (["cat/1", "dog/2"], [1, 0]),
    (["1/1", "2/2"], [0, 1]),
    (["cat/1", "cat/2", "dog/3"], ["tabby", "siamese", "hound"]),
    (["pets/1", "pets/2", "wild/3"], [0, 1, 2]),
    (["day1/1", "day2/2", "night/3"], [0, 0, 1]),
    (["part1/1", "part1/2", "part2/3", "part2/4"], [0, 1, 0, 1]),
    (["0/1", "0/2", "1/3", "1/4", "1/5"], [3, 1, 3, 0, 2]),
    (["00000/img00000000", "00001/img00000001", "00001/img00000002"], [0, 1, 0]),
]


def with_labels(source, document, paths, labels):
    names = [f"{path}.png" for path in paths]
    pairs = list(zip(names, labels, strict=True))
    if document == "dataset.json":
        text = labelled([list(pair) for pair in pairs])
    elif document == "metadata.jsonl":
        text = rows(*pairs)
    else:
        text = "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in pairs)
    return source({**images(*names), document: text})


@pytest.mark.parametrize("document", ["dataset.json", "metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize(("paths", "labels"), CONTRADICTING)
def test_labels_that_contradict_class_folders_are_refused(source, refusal, document, paths, labels):
    if document == "dataset.json" and isinstance(labels[0], str):
        pytest.skip("its labels are numbers")
    place = with_labels(source, document, paths, labels)
    refusal(lambda: open_dataset(place), "contradicting labels", f"by {document}", "use_labels")
    assert open_dataset(place, use_labels=False).labels is None


@pytest.mark.parametrize("document", ["dataset.json", "metadata.csv"])
@pytest.mark.parametrize(("paths", "labels"), AGREEING)
def test_folders_that_contradict_no_labels(source, document, paths, labels, caplog):
    if document == "dataset.json" and isinstance(labels[0], str):
        pytest.skip("its labels are numbers")
    found = open_dataset(with_labels(source, document, paths, labels)).labels.tolist()
    assert found == [sorted(set(labels)).index(label) for label in labels]
    unrelated = paths[0].startswith(("part1", "0/"))
    assert ("have nothing to do with them" in caplog.text) == unrelated


def test_classes_in_words():
    assert classes_line(["cat", "dog"]) == "2 classes: 0 cat, 1 dog"
    assert classes_line([f"n{i}" for i in range(1000)]).endswith("9 n9, and 990 more")
