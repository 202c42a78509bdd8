"""Classes are given by number or name."""

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.generation.classes import class_numbers, without_names

NAMES = ("cat", "dog", "tench, Tinca tinca", "7")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, None),
        (2, 2),
        (np.int64(2), 2),
        (torch.tensor(2), 2),
        ("dog", 1),
        ("2", 2),
        ("7", 3),  # a name goes before a number
        ("cat,dog", [0, 1]),
        ("cat, 2", [0, 2]),
        ("tench, Tinca tinca", 2),
        (["cat", 2, "1"], [0, 2, 1]),
        (["tench, Tinca tinca"], [2]),
        (("dog", np.int64(0)), [1, 0]),
        (np.array(["dog", "cat"]), [1, 0]),
        (torch.tensor([1, 0]), [1, 0]),
        ([], []),
        (range(3), [0, 1, 2]),
    ],
)
def test_numbers_and_names(given, found):
    assert class_numbers(given, NAMES) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dgo", "no class is called dgo; did you mean dog"),
        ("cat,dgo", "`class_labels` cat,dgo: no class is called dgo; did you mean dog"),
        ("zebra", "there are cat, dog, tench, Tinca tinca, 7"),
        ("", "''"),
        ("cat,", "no class is called ''"),
        ("-1", "no class is called -1"),
        (["cat", "x\ny"], r"x\\ny"),
        (1.0, "1.0 must be a class number"),
        ([1.5], "1.5 must be a class number"),
        (True, "True must be a class number"),
        ([None], "None must be"),
        ({"cat"}, "must be a class number"),
        ({"cat": 1}, "must be a class number"),
        (b"cat", "must be a class number"),
        (object, "must be a class number"),
        ([["cat"]], "must be a class number"),
    ],
)
def test_what_is_no_class(given, said):
    with pytest.raises(UserError, match=said) as caught:
        class_numbers(given, NAMES)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_names_for_a_model_without():
    with pytest.raises(UserError, match="the classes of this model have no names; give their numbers, as 0,1,2"):
        class_numbers("cat", ())


def test_a_number_that_is_another_class_name_is_said(caplog):
    caplog.set_level("INFO")
    assert class_numbers(1, ("1", "2", "3")) == 1
    assert "class 1 is the one that is called 2" in caplog.text
    caplog.clear()
    assert class_numbers([0, 1], ("00", "01")) == [0, 1]
    assert caplog.text == ""


def test_what_holds_no_name_stays():
    given = torch.tensor([1])
    assert without_names(given, NAMES) is given
    assert without_names(["dog", 0], NAMES) == [1, 0]
    assert without_names(3, NAMES) == 3
