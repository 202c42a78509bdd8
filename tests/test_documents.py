import json
import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unistep.documents import DocumentError, dump_yaml, parse_json, parse_yaml, read_json, read_yaml
from unistep.errors import UserError

TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abc xyz~<!&*0179.:-", min_size=1).filter(lambda k: k != "<<"), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(TREES)
def test_yaml_comes_back(tree):
    assert parse_yaml(dump_yaml(tree)) == tree
    assert yaml.safe_load(dump_yaml(tree)) == tree  # and in YAML 1.1


@given(TREES)
def test_json_comes_back(tree):
    text = json.dumps(tree)
    assert parse_json(text) == tree
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        assert parse_json(text.encode(encoding)) == tree or not text


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3),
        ("-3", -3),
        ("0", 0),
        ("10_000", 10_000),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("1e-7", 1e-7),
        ("1.0e-07", 1e-7),
        (".5", 0.5),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        # Texts, which YAML 1.1 takes for other things.
        ("0777", "0777"),
        ("-007", "-007"),
        ("1:30:00", "1:30:00"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01 10:00:00", "2020-01-01 10:00:00"),
        ("0b11", "0b11"),
        ("1__000", "1__000"),
        ("=", "="),
        ("'3'", "3"),
    ],
)
def test_scalars(text, value):
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)
    assert type(parse_yaml(f"[{text}]" if text else "[~]")[0]) is type(value)


def test_keys_are_texts():
    assert parse_yaml("1: a\ntrue: b\n~: c\n1.50: d") == {"1": "a", "true": "b", "~": "c", "1.50": "d"}


def test_aliases_are_copies():
    found = parse_yaml("a: &x {b: [1]}\nc: *x\nd: [*x, *x]")
    assert found == {"a": {"b": [1]}, "c": {"b": [1]}, "d": [{"b": [1]}] * 2}
    assert found["a"] is not found["c"] and found["a"]["b"] is not found["d"][0]["b"]


def laughs(levels: int, of: str) -> str:
    lines = ["- &x0 " + of.format("x", "x")]
    lines += [f"- &x{i} " + of.format(f"*x{i - 1} ", f"*x{i - 1} ") for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, words",
    [
        (laughs(40, "[{}, {}]"), "aliases"),
        (laughs(40, "{{a: {}, b: {}}}"), "aliases"),
        (laughs(80, "[{}]"), "deeper"),
        ("&a [*a]", "what it stands in"),
        ("&a {b: {c: *a}}", "what it stands in"),
        ("*a", "undefined alias"),
        ("[" * 10_000, "deeper"),
        ("{a: " * 10_000, "deeper"),
        ("- " * 500, "deeper"),
        ("\n".join(" " * i + "a:" for i in range(200)), "deeper"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("a: {b: 1, b: 1}", "'b' stands twice"),
        ("1: a\n'1': b", "'1' stands twice"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "line 3: << merges"),
        ("? [a]\n: 1", "a key is a text"),
        ("? {a: 1}\n: 1", "a key is a text"),
        ("a: !!python/object/apply:os.system [touch x]", "tag"),
        ("a: !!python/name:os.system", "tag"),
        ("a: !mine 1", "tag !mine"),
        ("a: !!binary aGVsbG8=", "tag !!binary"),
        ("a: !!set {b}", "tag !!set"),
        ("a: !!timestamp 2020-01-01", "tag"),
        ("a: !!int '0777'", "tag !!int"),
        ("a: !!float x", "tag !!float"),
        ("a: " + "9" * 5000, "5,000 digits"),
        ("a: [1", "line 1"),
        ('a: "x', "line"),
        ("a:\tb: c", "line 1"),
        ("a: b: c", "line 1: mapping values"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \0", "special characters"),
        ("a: \x1b[31m", "special characters"),
        ("%YAML 9.9\n---\na: 1", "version"),
        ("x" * 200_001, "200,000 characters"),
        ("[" + "1," * 30_000 + "]", "20,000 values"),
    ],
)
def test_what_is_no_yaml(text, words):
    with pytest.raises(DocumentError, match="^[^\n]*$") as error:
        parse_yaml(text)
    assert words in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "line 1"),
        ("[1,]", "line 1"),
        ("nan", "line 1"),
        ("9" * 5000, "5,000 digits"),
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ('{"b": [{"a": 1, "c": 2, "a": 1}]}', "'a' stands twice"),
        ("[" * 100_000, "deeper"),
        ("[" * 100 + "]" * 100, "deeper"),
        ('{"a":' * 100 + "1" + "}" * 100, "deeper"),
        ("[1] [2]", "Extra data"),
        (b"\xff\x00\x01", "line 1"),
        (b'{"a": "\xff"}', "encoding"),
    ],
)
def test_what_is_no_json(text, words):
    with pytest.raises(DocumentError, match="^[^\n]*$") as error:
        parse_json(text)
    assert (words in str(error.value) or isinstance(text, bytes)) and len(str(error.value)) < 300


def test_anything_is_a_value_or_an_error():
    r = random.Random(0)
    pieces = [
        "a",
        ": ",
        "\n",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "'",
        '"',
        "!!",
        "|",
        ">",
        "? ",
        "#",
        "\t",
        "%",
        "~",
        "1",
        "é",
    ]
    for _ in range(2000):
        text = "".join(r.choices(pieces, k=r.randrange(1, 25)))
        for parse in (parse_yaml, parse_json):
            try:
                parse(text)
            except DocumentError as error:
                assert "\n" not in str(error)


def test_files(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path, "x") == {"a": 1}
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, "x", most_bytes=100) == {"a": 1}
    for content, read in (
        (b"a: \xff", lambda: read_yaml(path, "mend it")),
        (b"{", lambda: read_json(path, "mend it", most_bytes=9)),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a is not readable (YAML|JSON) \(.*\); mend it"):
            read()
    path.write_bytes(b"[" * 1_000_000)
    with pytest.raises(UserError, match="more than the 800,000"):
        read_yaml(path, "x")
    with pytest.raises(UserError, match="more than the 9"):
        read_json(path, "x", most_bytes=9)
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "b", "x", most_bytes=9)
    with pytest.raises(UserError, match="is no file"):
        read_yaml(__import__("pathlib").Path("/dev/zero"), "x")
