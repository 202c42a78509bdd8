"""Plain arguments of the public functions: what they may be, and one line for the rest."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union

import jaxtyping
import numpy as np
import pytest
import torch

import unistep
from unistep.arguments import plain_arguments
from unistep.checks import user_path
from unistep.errors import UserError


@plain_arguments(empty=["own"])
def given(
    count: int = 1,
    *,
    scale: float | None = None,
    steps: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    labels: int | Sequence[int] | None = None,
    kind: Literal["a", "b"] | None = None,
    place: str | os.PathLike[str] | None = None,
    own: str | None = None,
    device: str | None = None,
    loud: bool = False,
    image: Union[str, os.PathLike[str], Sequence[str], "torch.Tensor", None] = None,
) -> dict[str, Any]:
    """Returns what it was given."""
    return dict(locals())


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("count", np.int64(3), 3),
        ("count", torch.tensor(3), 3),
        ("scale", 3, 3),
        ("scale", np.float32(0.5), 0.5),
        ("steps", range(3), [0, 1, 2]),
        ("steps", (0, 1), [0, 1]),
        ("steps", np.array([0, 22]), [0, 22]),
        ("steps", torch.tensor([0, 22]), [0, 22]),
        ("labels", np.int32(3), 3),
        ("labels", torch.tensor([3, 4]), [3, 4]),
        ("names", ("a", "b"), ["a", "b"]),
        ("device", torch.device("cpu"), "cpu"),
        ("loud", np.bool_(True), True),
        ("place", "~/x/", os.path.expanduser("~/x/")),
        ("place", Path("~/x"), Path.home() / "x"),
        ("place", "~nobody9/x", "~nobody9/x"),
        ("own", "", ""),
    ],
)
def test_normalised(name, value, plain):
    found = given(**{name: value})[name]
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 2.0, "2.0 must be a whole number"),
        ("count", True, "True must be a whole number"),
        ("count", None, "None must be a whole number"),
        ("scale", "1", "'1' must be a number"),
        ("steps", "0,22", "'0,22' must be a list of whole numbers"),
        ("steps", {0, 22}, "{0, 22} must be a list of whole numbers"),
        ("steps", [0, 1.5], "[0, 1.5] must be a list of whole numbers"),
        ("steps", 3, "3 must be a list of whole numbers"),
        ("labels", "3", "'3' must be a whole number or a list of whole numbers"),
        ("names", "fd", "'fd' must be a list of words"),
        ("kind", "c", "c: must be one of a, b"),
        ("kind", 3, "3 must be one of a, b"),
        ("place", 3, "3 must be a path"),
        ("place", b"x", "b'x' must be a path"),
        ("place", " ", "is empty; give a path, or leave it out"),
        ("device", "", "is empty; give a value, or leave it out"),
        ("loud", "no", "'no' must be True or False"),
        ("image", "", "is empty; give a path, or leave it out"),
    ],
)
def test_refused_in_one_line(name, value, message):
    with pytest.raises(UserError) as caught:
        given(**{name: value})
    assert str(caught.value) == f"`{name}` {message}"


def test_other_objects_pass():
    image, images = torch.zeros(1, 2, 2), iter("ab")
    assert given(image=image)["image"] is image
    assert given(image=images)["image"] is images  # not read
    assert next(images) == "a"


def test_wrong_calls_name_the_function():
    with pytest.raises(TypeError, match=r"given\(\) got an unexpected keyword argument 'cuont'"):
        given(cuont=3)


def test_every_public_function_of_plain_arguments_checks_them():
    for name in ("load", "sample", "edit", "evaluate", "search", "inspect", "convert", "open_dataset"):
        assert getattr(unistep, name).__code__ is given.__code__, name


@pytest.mark.parametrize("model", [3, [], b"x"])
@pytest.mark.parametrize("verb", [unistep.sample, unistep.inspect])
def test_no_model_at_all(verb, model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its errors would come first
    with pytest.raises(UserError, match="is no model; give a name, a loaded model or a pipeline$"):
        verb(model)


def test_a_path_holds_no_nul():
    with pytest.raises(UserError, match=r"^a\\x00b is no path: it holds a NUL; give another$"):
        user_path("a\0b")


def test_home_of_nobody_is_a_name():
    assert user_path("~nobody9/x") == Path("~nobody9/x")
    assert user_path("~/x") == Path.home() / "x"


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000], ids=["large", "negative", "unprintable"])
@pytest.mark.parametrize("arguments", [{"sigma": ...}, {"sigmas": [1.0, ...]}, {"seed": ...}], ids=",".join)
def test_numbers_that_no_float_holds_are_one_line(number, arguments):
    given = {k: [number if x is ... else x for x in v] if isinstance(v, list) else number for k, v in arguments.items()}
    with pytest.raises(UserError) as error:
        unistep.edit(None, None, "denoise", progress=False, **given)
    assert str(error.value) == f"`{next(iter(given))}` has over 300 digits; give a smaller number"
