"""The tree keeps its rules: tests are collected, flags are spelled in cli/ alone, public names are there and cheap."""

import ast
import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unistep

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src/unistep").rglob("*.py"))
# Flags of other programs, which stand in the text as such.
_OTHERS = {"--transform", "--ts", "--force-reinstall", "--cond", "--arch", "--loss_norm"}


def test_every_test_file_is_collected(collected_files, pytestconfig):
    if pytestconfig.args != pytestconfig.getini("testpaths"):
        pytest.skip("a part of the tests was asked for")
    on_disk = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(on_disk - collected_files) == []


def test_names_of_test_files_are_unique():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_flags_are_spelled_in_cli_alone():
    found = [
        f"{path.relative_to(ROOT)}: {flag}"
        for path in SOURCES
        if "cli" not in path.parts
        for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text())) - _OTHERS
    ]
    assert sorted(found) == []


def test_packages_with_telemetry_are_imported_by_what_switches_it_off():
    """A function imports OpenVINO, NNCF or a part of onnxruntime after it has called what keeps them silent."""
    silent = {"openvino": "runtime", "nncf": "runtime", "onnxruntime": "onnxruntime"}
    found, loud = 0, []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            for root in {name.partition(".")[0] for name in names} & silent.keys():
                found += 1
                around = [f for f in functions if f.lineno < node.lineno <= (f.end_lineno or 0)]
                calls = [c for f in around for c in ast.walk(f) if isinstance(c, ast.Call) and c.lineno < node.lineno]
                if silent[root] not in {getattr(call.func, "id", "") for call in calls}:
                    loud.append(f"{path.name}:{node.lineno}")
    assert found and loud == []


def test_public_names():
    assert unistep.__all__ == sorted(unistep.__all__) == dir(unistep)
    for name in unistep.__all__:
        assert getattr(unistep, name) is not None
    names: dict[str, object] = {}
    exec("from unistep import *", names)
    assert set(unistep.__all__) <= names.keys()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unistep.nothing


def test_the_import_costs_nothing():
    code = (
        "import sys, time; started = time.process_time(); import unistep; print(time.process_time() - started); "
        "assert not {'torch', 'numpy', 'PIL', 'rich'} & sys.modules.keys()"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.05


@pytest.mark.parametrize("name", [n for n in unistep.__all__ if n[0].islower() and not n.startswith("_")])
def test_examples_of_public_functions_run(name, tmp_path, monkeypatch):
    """Every public function has an example, which gives what stands there."""
    monkeypatch.chdir(tmp_path)
    function = getattr(unistep, name)
    function = getattr(function, "__wrapped__", function)
    examples = doctest.DocTestParser().get_doctest(function.__doc__ or "", {}, f"unistep.{name}", None, None)
    assert examples.examples, f"unistep.{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    output: list[str] = []
    runner.run(examples, out=output.append)
    assert runner.failures == 0, "".join(output)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [n for n in unistep.__all__ if n[0].islower() and not n.startswith("_")])
def test_public_functions_are_documented_whole(name):
    """Every argument has its entry, in the order of the signature."""
    import inspect

    import docstring_parser

    function = getattr(unistep, name)
    parsed = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    documented = [part for entry in parsed.params for part in entry.arg_name.lstrip("*").split(", ")]
    assert documented == list(inspect.signature(function).parameters)
    assert parsed.returns is not None and parsed.raises


_QUESTIONS = {"what", "where", "how", "who", "whose", "which", "when", "why"}
_FRAGMENTS = _QUESTIONS | set("of for in as to told see that from with by at on is are has have does because".split())


def docstrings(path: Path):
    """The name and the docstring of a module, and of its classes and functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text


def entries(text: str) -> list[tuple[str, str]]:
    """The argument entries of a docstring: names and text."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    return re.findall(r"^    ([\w*][\w*, ]*): (.*)", section[1], re.MULTILINE) if section else []


def first_word(text: str) -> str:
    return re.split(r"\W+", text.strip().lower())[0]


def test_docstrings_begin_with_a_verb_or_a_noun():
    found = [name for path in SOURCES for name, text in docstrings(path) if first_word(text) in _QUESTIONS]
    assert found == []


def test_argument_entries_stand_alone():
    found = [
        f"{name}.{argument}: {text}"
        for path in SOURCES
        for name, whole in docstrings(path)
        for argument, text in entries(whole)
        if first_word(text) in _FRAGMENTS
    ]
    assert found == []


def test_entries_are_found():
    """Else the test above could not fail."""
    count = sum(len(entries(text)) for path in SOURCES for _, text in docstrings(path))
    assert count > 1000
    assert entries("A thing.\n\nArgs:\n    seed: of everything.\n    a, b: numbers\n        and more.\n") == [
        ("seed", "of everything."),
        ("a, b", "numbers"),
    ]
