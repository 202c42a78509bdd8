"""Malformed recipes, runs with damaged files, and records of unfinished outputs."""

import json
import random
import re
from typing import Any

import yaml
from fuzz_case import Case, Content, Good, below, damaged, fifo, folder
from fuzz_models import odd_pickle, spoiled_json

from unistep.config import find_recipe

_RECIPES = ["mnist-quick", "mnist-ect", "mnist-cd", "mnist-sct", "mnist-pd", "mnist-edm", "cifar10-ict", "lsun256-cd"]


def recipes(r: random.Random, good: Good) -> Case:
    source = find_recipe(r.choice(_RECIPES)).read_text()
    note, content = _odd_yaml(r, source) if r.randrange(2) else _wrong_value(r, source)
    ending = r.choice(["yaml", "yml"])
    command = r.choice(
        [
            ["recipes", f"mine.{ending}"],
            ["train", f"mine.{ending}"],
            ["train", f"mine.{ending}", "--output", "run"],
            ["train", f"mine.{ending}", "--dry-run"],
        ]
    )
    files: dict[str, Content] = {f"mine.{ending}": content}
    if r.randrange(8) == 0:
        command, files = ["train", "--resume", "run"], {"run/config.yaml": content}
    return Case(command, files, note=note)


def _odd_yaml(r: random.Random, text: str) -> tuple[str, Content]:
    n = r.randrange(100, 20_000)
    laughs = "\n".join(f"  - &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else 'x'}]" for i in range(12))
    found: dict[str, Content] = {
        "laughs": f"description:\n{laughs}\n{text}",
        "laughs in a key": "x: &a0 [1]\n" + "".join(f"x{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        "merge": "base: &b {steps: 3}\n" + text.replace("stages:", "stages:\n  extra: {<<: *b}", 1),
        "self": "description: &a [*a]\n" + text,
        "no anchor": "description: *nothing\n" + text,
        "deep flow": "[" * n,
        "deep mappings": "{a: " * n,
        "deep blocks": "\n".join(" " * i + "a:" for i in range(300)),
        "deep dashes": "- " * n,
        "twice": text + "\nstages: {}\n",
        "twice below": text.replace("steps:", "steps: 5\n    steps:", 1),
        "number twice": "1: a\n1: b\n" + text,
        "tag": text + "\nseed: !!python/object/apply:os.system ['touch canary']\n",
        "tag name": text + "\nseed: !!python/name:os.system\n",
        "tag binary": text + "\nseed: !!binary R0lGODlh\n",
        "tag own": text + "\nseed: !mine 3\n",
        "tag set": text + "\nlpips: !!set {a, b}\n",
        "tag int": text + "\nseed: !!int '0777'\n",
        "tag float": text + "\nsigma_data: !!float abc\n",
        "tabs": text.replace("\n  ", "\n\t", 1) + "\n\tx: 1\n",
        "colon": text + "\nseed: 1: 2\n",
        "quote": text + '\ndescription: "open\n',
        "bracket": text + "\nlpips: {vgg: [\n",
        "documents": text + "\n---\n" + text,
        "directive": "%YAML 9.9.9\n---\n" + text,
        "NUL": text + "\0",
        "escape": text + "\nseed: \x1b[31m\n",
        "bytes": text.encode() + b"\xff\xfe\xfa",
        "UTF-16": b"\xff\xfe" + text.encode("utf-16-le"),
        "empty": "",
        "comment": "# nothing\n",
        "text": "hello",
        "list": "- a\n- b\n",
        "number": "3",
        "date": "2020-01-01",
        "key list": "? [a, b]\n: 1\n" + text,
        "key mapping": "{a: 1}: 2\n" + text,
        "key null": "~: 2\n" + text,
        "large": text + "\n#" + "x" * 3_000_000,
        "long list": "description: [" + "1," * 100_000 + "]\n",
        "long key": "x" * 5000 + ": 1\n" + text,
        "noise": r.randbytes(500),
        "JSON": json.dumps({"stages": {"a": 1}}),
        "HTML": "<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n",
        "fifo": fifo,
        "folder": folder,
        "fences": text + "\n```: </script>\n",
    }
    return r.choice(list(found.items()))


_WRONG = [
    "0777",
    "1:30:00",
    "2020-01-01",
    "yes",
    "off",
    ".nan",
    ".inf",
    "-.inf",
    "1e999",
    "9" * 500,
    "-5",
    "[1, [2]]",
    "[]",
    "{a: 1}",
    "{}",
    '"\\e[31m\\n```"',
    "x" * 3000,
    '"../../etc/passwd"',
    "''",
    "0o9",
    "0b11",
    "1_000_",
    "!!str",
    "'\\ud800'",
    "=",
    "<<",
]
# Texts are free there, or the value is read later.
_FREE = re.compile(r"(description|published_at|source|vgg|heads|cache_dir|init|teacher|name)$")


def _wrong_value(r: random.Random, text: str) -> tuple[str, str]:
    """A recipe with one value of another kind."""
    values = yaml.safe_load(text)
    paths = [p for p in _paths(values) if not _FREE.search(str(p[-1])) and not isinstance(p[-1], int)]
    path = r.choice(paths)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    fitting = {int: ["0o9"], float: ["-5"], list: ["[]"], dict: ["{}"], str: [], bool: []}
    new = r.choice([w for w in _WRONG if w not in fitting.get(type(old), [])])
    inner[path[-1]] = "@@@"
    changed = yaml.safe_dump(values, sort_keys=False, width=200).replace("'@@@'", new).replace("@@@", new)
    return f"{'.'.join(map(str, path))} = {new[:40]}", changed


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in items for found in [(*path, key), *_paths(one, (*path, key))]]


# ---------------------------------------------------------------------------------------------------- runs


def runs(r: random.Random, good: Good) -> Case:
    """A run directory with a damaged file."""
    files = sorted(p.relative_to(good.run).as_posix() for p in good.run.rglob("*") if p.is_file())
    models = [f for f in files if "/model/" in f and not f.endswith((".md", ".png"))]
    place = r.choice(["config.yaml", *(f for f in models if f.startswith("student"))])
    changed: dict[str, Content | None] = {}
    commands = [
        ["sample", "run", "--num-images", "1"],
        ["convert", "run", "converted"],
        ["evaluate", "run", "--reference", "mnist-test", "--num-images", "16"],
        ["search", "run", "--reference", "mnist-test", "--num-images", "20"],
        ["edit", "vary", "--model", "run", "--input", "good.png", "--output", "edited.png"],
    ]
    content = (good.run / place).read_bytes()
    if place == "config.yaml":
        note, spoiled = _odd_yaml(r, content.decode()) if r.randrange(2) else _wrong_value(r, content.decode())
        changed[place] = spoiled
        commands = [["train", "--resume", "run"], ["train", "--resume", "run", "--dry-run"]]
    elif place.endswith(".json"):
        note, changed[place] = spoiled_json(r, json.loads(content))
    elif r.randrange(5) == 0:
        note, changed[place] = "no file", r.choice([fifo, folder, None])
    else:
        note, changed[place] = damaged(r, content)
        commands.append(["sample", "run", "--num-images", "2", "--output", "out.npz"])
    words = r.choice(commands)
    return Case(words, below("run", good.copy_of(good.run, changed)), note=f"{place}: {note}")


def checkpoints(r: random.Random, good: Good) -> Case:
    """A run that has no model yet, and whose only checkpoint is damaged."""
    kept = ("config.yaml", "outline")
    files = {n: c for n, c in good.copy_of(good.run, {}).items() if n.startswith("teacher/checkpoints") or n in kept}
    files["config.yaml"] = (good.run / "config.yaml").read_bytes()
    for name in [n for n in files if n.endswith(".pt")]:
        whole = (good.run / name).read_bytes()
        note, files[name] = damaged(r, whole) if r.randrange(2) else odd_pickle(r)
    words = r.choice(
        [
            ["sample", "run", "--num-images", "1"],
            ["convert", "run", "converted"],
            ["evaluate", "run", "--reference", "mnist-test", "--num-images", "16"],
            ["sample", "run/teacher", "--num-images", "1"],
        ]
    )
    return Case(words, below("run", files), note=note)


# ---------------------------------------------------------------------------------------------------- records


def records(r: random.Random, good: Good) -> Case:
    """Outputs of former commands, damaged, in the place where the command writes."""
    record = {
        "found": [],
        "scores": {"0,5": 1.5, "0,6": 1.25},
        "fresh": {"0,5": {"value": 1.5, "without_a_group": [1.0, 2.0]}},
        "settings": {"model": "x", "seed": 0},
    }
    note, content = spoiled_json(r, record) if r.randrange(3) else ("other", json.dumps(record))
    options = [
        (["search", "--reference", "mnist-test", "--num-images", "20", "--output", "out"], "out/search.json"),
        (["sample", "--num-images", "2", "--output", "out.png"], "out.png/x"),
        (["sample", "--num-images", "2", "--output", "out.npz"], "out.npz/x"),
        (["convert", str(good.model), "out"], "out/x"),
        (["train", "mnist-quick", "--output", "out"], "out/x"),
        (["train", "mnist-quick", "--output", "out"], "out"),
        (["evaluate", "--reference", "mnist-test", "--num-images", "16", "--output", "out.json"], "out.json/x"),
        (["demo", "--output", "out.png"], "out.png/x"),
        (["sample", "--num-images", "2", "--output", "out/a.png"], "out"),
        (["convert", str(good.model), "out/model"], "out"),
        (["edit", "vary", "--input", "good.png", "--output", "out/a.png"], "out"),
        (["evaluate", "--reference", "mnist-test", "--output", "out/m.json"], "out"),
    ]
    words, place = r.choice(options)
    if place == "out/search.json" and r.randrange(6) == 0:
        note, made = "no file", r.choice([fifo, folder])
        return Case(words, {place: made}, note=note)
    return Case(words, {place: content}, note=f"{place}: {note}")
