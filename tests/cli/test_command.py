"""A command from a function: what its signature and docstring become, and how errors are spelled."""

import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Union

import pytest

from unistep.cli.command import run_command
from unistep.cli.parameter import parameters_of
from unistep.cli.parsing import parse
from unistep.cli.spelling import spell
from unistep.errors import UserError
from unistep.runtime.interrupt import Interrupted


def paint(
    image: Union[str, os.PathLike[str], "Canvas", None] = None,  # noqa: F821, UP007 - a type that no flag can hold
    *,
    colour: Literal["red", "green"] = "red",
    layers: int = 1,
    width: float | None = None,
    stops: Sequence[int] | None = None,
    labels: int | Sequence[int] | None = None,
    dry: bool = False,
    frame: bool = True,
    brush: "Canvas | None" = None,  # noqa: F821
) -> dict[str, object]:
    """Paints an image.

    The image is as wide as `width`.

    Args:
        image: file of the image; default: a blank one.
        colour: colour of the paint.
        layers: number of layers.
        width: width in pixels; default: 10.
        stops: positions, as 0,22.
        labels: label of all parts, or one a part.
        dry: wait until the paint is dry.
        frame: add a frame.
        brush: what no flag can hold.

    Returns:
        The arguments.

    Example:
        >>> paint()
    """
    logging.getLogger("unistep").info("painting")
    if layers > 9:
        raise UserError("9 at most", "give fewer", field="layers")
    if width == 0:
        raise UserError("nothing to see; set `dry=True`, `layers=2` or `stops`, and see `unistep paint`")
    return locals()


def given(*words: str) -> dict[str, object]:
    return parse(words, parameters_of(paint), ("image",), "unistep paint")


def test_types_become_values():
    assert given() == {
        "image": None,
        "colour": "red",
        "layers": 1,
        "width": None,
        "stops": None,
        "labels": None,
        "dry": False,
        "frame": True,
    }
    made = given("a.png", "--colour", "green", "--layers=3", "--width", "2.5", "--stops", "0,22", "--dry", "--no-frame")
    assert made["image"] == "a.png" and made["colour"] == "green" and made["layers"] == 3 and made["width"] == 2.5
    assert made["stops"] == [0, 22] and made["dry"] is True and made["frame"] is False
    assert given("--labels", "3")["labels"] == 3 and given("--labels", "[3, 4]")["labels"] == [3, 4]
    assert given("--width", "-3")["width"] == -3 and given("--stops", "-1,0")["stops"] == [-1, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--colour blue", "`colour` blue: must be one of red, green"),
        ("--colour gren", "did you mean green?"),
        ("--layers 1.5", "`layers` 1.5: expected int"),
        ("--layers", "--layers needs a value"),
        ("--layers --dry", "--layers needs a value"),
        ("--stops 0,x", "`stops` 0,x: expected whole numbers separated by commas, as 0,22"),
        ("--width x", "`width` x: expected float"),
        ("--brush x", "unknown option --brush"),
        ("--layer 3", "unknown option --layer; did you mean --layers?"),
        ("--frame", "unknown option --frame; did you mean --no-frame?"),
        ("a b", "unexpected argument b"),
        ("-x", "unknown option -x"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UserError) as error:
        given(*words.split())
    assert message in str(error.value)


def test_errors_and_notes_are_spelled_in_flags(capsys):
    def run(*words):
        run_command(words, paint, print, usage="unistep paint [IMAGE] [options]", positionals=("image",))

    with pytest.raises(UserError, match="^--layers 9 at most; give fewer$"):
        run("--layers", "10")
    with pytest.raises(UserError, match="set --dry, --layers 2 or --stops, and see `unistep paint`"):
        run("--width", "0")
    assert capsys.readouterr().err == "note: painting\n" * 2
    assert logging.getLogger("unistep").handlers == []


def test_values_that_turn_a_flag_off_are_spelled():
    flags = {"use_labels": "--use-labels", "progress": "--no-progress"}
    assert spell("`use_labels=False`, `use_labels=True`", flags) == "--use-labels false, --use-labels"
    assert spell("`progress=False`", flags) == "--no-progress"


def test_only_names_of_the_command_are_spelled():
    assert spell("`a` and `b_c=3` and `d=True`, `e`", {"b_c": "--b-c", "d": "--d"}) == "`a` and --b-c 3 and --d, `e`"


def test_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(
            ["--help"],
            paint,
            print,
            usage="unistep paint [IMAGE] [options]",
            positionals=("image",),
            defaults={"width": 7.0},
        )
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: unistep paint [IMAGE] [options]\n\nPaints an image.")
    assert "as wide as --width" in text and ">>>" not in text and "brush" not in text
    flat = " ".join(text.split())
    assert "--colour {red,green} colour of the paint (default: red)" in flat
    assert "--no-frame do not add a frame" in flat and "--dry wait until the paint is dry" in flat
    assert "--width X width in pixels; default: 7.0" in flat and "--labels N,..." in flat


@pytest.mark.parametrize("note", ["3 of 4 layers are kept", ""])
def test_a_signal_ends_with_what_is_kept(capsys, note):
    def stop(*, layers: int = 1) -> None:
        """Stops."""
        stopped = Interrupted(signal.SIGTERM)
        if note:
            stopped.add_note(note)
        raise stopped

    with pytest.raises(SystemExit) as ended:
        run_command([], stop, print, usage="unistep stop")
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == f"stopped by SIGTERM; {note or 'nothing was written'}\n"


def test_a_flag_of_another_name_that_takes_several_words(capsys):
    def hang(pictures: str | Sequence[str] | None = None) -> str:
        """Hangs pictures.

        Args:
            pictures: names of files; in Python also pictures.
        """
        if pictures is None:
            raise UserError("is missing", field="pictures")
        return ",".join(pictures)

    how: dict[str, Any] = {"usage": "unistep hang", "flags": {"pictures": "input"}, "several": ["pictures"]}
    run_command(["--input", "a,b.png", "c.png"], hang, print, **how)
    assert capsys.readouterr().out == "a,b.png,c.png\n"
    for arguments, message in (([], "^--input is missing"), (["--input"], "^--input needs a value")):
        with pytest.raises(UserError, match=message):
            run_command(arguments, hang, print, **how)
    with pytest.raises(SystemExit):
        run_command(["--help"], hang, print, **how)
    assert "--input NAME ...  names of files\n" in capsys.readouterr().out


def test_words_without_a_flag_stand_anywhere():
    def copy(source: str, target: str, *, count: int = 1) -> None:
        """Copies."""

    words = [
        ("a", "b", "--count", "2"),
        ("a", "--count", "2", "b"),
        ("--count", "2", "a", "b"),
        ("a", "--count=2", "b"),
    ]
    for given_words in words:
        found = parse(given_words, parameters_of(copy), ("source", "target"), "unistep copy")
        assert found == {"source": "a", "target": "b", "count": 2}


def test_a_flag_of_several_words_may_be_repeated():
    def show(images: Sequence[str] | None = None) -> None:
        """Shows."""

    own = [replace(p, several=True) for p in parameters_of(show)]
    assert parse(("--images", "a", "--images", "b", "c"), own, (), "unistep show") == {"images": ["a", "b", "c"]}


@pytest.mark.parametrize("words", [("--dry", "true"), ("--dry=true",), ("--dry", "No"), ("--no-frame", "1")])
def test_a_switch_takes_no_value(words):
    with pytest.raises(
        UserError, match=f"^{words[0].partition('=')[0]} takes no value; give it alone, or leave it out$"
    ):
        given(*words)


def test_a_word_after_a_switch_is_the_next_argument():
    assert given("--dry", "a.png")["image"] == "a.png"
