"""Command lines that are wrong, devices and pipes in place of files, and names that a terminal would obey."""

import functools
import random
import re
from typing import Any

from fuzz_case import Case, Content, Good, data_command, fifo, model_command
from fuzz_data import png

from unistep.cli.parameter import Parameter, parameters_of

_NUMBERS = ["nan", "inf", "-inf", "1e400", "-1e400", "9" * 400, "-3", "0x10", "1,2,", "1;2", "--", "1e5e5", "+-1", "٣x"]
_TEXTS = [
    "",
    " ",
    "\0x"[1:] + "\1",
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.x",
    "x" * 5000,
    "\udc80\udcff",
    "😀" * 300,
    "None",
    "{}",
    "[[[[",
    "%s%n%d",
    "{0.__class__}",
    "`id`",
    "$(touch canary)",
    "'; touch canary; '",
    "<script>",
    "../../../etc/passwd",
    "/proc/self/mem",
    "/dev/null/x",
    "con\\nul",
]
_COMMANDS = ("sample", "edit", "evaluate", "search", "demo", "convert", "inspect", "data", "train", "recipes")


@functools.cache
def _parameters() -> dict[str, list[Parameter]]:
    from unistep.workflows.demo import demo
    from unistep.workflows.edit import edit
    from unistep.workflows.evaluate import evaluate
    from unistep.workflows.sample import sample
    from unistep.workflows.search import search
    from unistep.workflows.train import train

    functions: dict[str, Any] = {
        "sample": sample,
        "edit": edit,
        "evaluate": evaluate,
        "search": search,
        "demo": demo,
        "train": train,
    }
    return {name: [p for p in parameters_of(f) if p.name != "image"] for name, f in functions.items()}


_VALID = {
    "sample": ["sample", "--num-images", "1"],
    "edit": ["edit", "vary", "--input", "good.png", "--output", "o.png"],
    "evaluate": ["evaluate", "mnist-test", "--reference", "mnist-test", "--metrics", "fd"],
    "search": ["search", "--reference", "mnist-test", "--num-images", "20"],
    "demo": ["demo"],
    "train": ["train", "mnist-quick", "--dry-run"],
}
_KEYS = [
    "seed",
    "sigma-data",
    "data.resolution",
    "data.memory-limit",
    "student.steps",
    "student.batch-size",
    "student.optimizer.lr",
    "student.optimizer.betas",
    "student.ema-decays",
    "student.accumulation",
    "student.timesteps",
    "student.num-train-timesteps",
    "student.objective.P-mean",
    "student.objective.stages",
    "teacher.optimizer.warmup-steps",
    "evaluate-every",
    "network.block-out-channels",
    "network.patch-size",
    "network.norm-num-groups",
    "student.method",
    "network.name",
    "use-labels",
    "student",
    "network",
    "data",
    "evaluation.metrics",
]


def command_lines(r: random.Random, good: Good) -> Case:
    choice = r.randrange(10)
    if choice == 0:
        return _no_command(r)
    if choice == 1:
        return _unknown_flag(r)
    if choice in (2, 3):
        return _recipe_key(r)
    command = r.choice(list(_VALID))
    parameters = [p for p in _parameters()[command] if not p.is_switch and p.name not in ("model", "samples", "recipe")]
    # A dry run takes a teacher and data that are not there, and writes nothing.
    out = ("task", "teacher", "output", "data") if command == "train" else ("task",)
    p = r.choice([p for p in parameters if p.name not in out])
    numeric = p.kinds[0] in (int, float) or re.search(r"int|float", str(p.kinds[0]))
    value = r.choice(_NUMBERS if numeric and r.randrange(3) else _TEXTS)
    words = [w for w in _VALID[command]]
    given = {"--reference", "--output", "--num-images", "--metrics"} & {p.flag}
    for flag in given & set(words):
        at = words.index(flag)
        words[at : at + 2] = []
    words += [p.flag, value] if r.randrange(2) else [f"{p.flag}={value}"]
    if p.name in ("class_labels",) and value in ("-3",):
        words.append("--nothing")
    return Case(words, {"good.png": png()}, note=f"{p.flag} {value[:30]!r}")


def _no_command(r: random.Random) -> Case:
    word = r.choice(
        [*(t for t in _TEXTS if t), "smple", "--sample", "-x", "sample\n", "SAMPLE", "os", "__init__", "../cli"]
    )
    return Case([word, *r.choices(_TEXTS, k=r.randrange(3))], note="no command")


def _unknown_flag(r: random.Random) -> Case:
    command = r.choice(_COMMANDS)
    flag = r.choice(
        [
            "--nothing",
            "--num-imagse",
            "--",
            "-z",
            "--\x1b[31m",
            "--a\nb",
            "--" + "x" * 3000,
            "--=",
            "---seed",
            "--seed-",
        ]
    )
    words = {"data": ["data", "inspect", "mnist"], "recipes": ["recipes"]}.get(command, [command])
    if flag == "--":
        words, flag = [command, "--"], "nothing-of-this-name-\x1b[1m"
    return Case([*words, flag, r.choice(_TEXTS)], note=f"unknown flag {flag[:20]!r}")


def _recipe_key(r: random.Random) -> Case:
    key, recipe = r.choice(_KEYS), r.choice(["mnist-quick", "mnist-ect"])
    value = r.choice(
        [
            *(n for n in _NUMBERS if n != "0x10"),  # a number of YAML
            "0777",
            "1:30:00",
            "{a: 1}",
            "[" * 300,
            "*x",
            "&a [*a]",
            "!!python/name:os",
            "{}x",
            "{: ",
            "yes please",
        ]
    )
    words = ["train", recipe, "--dry-run"]
    words += [f"--{key}={value}"] if value.startswith("-") or r.randrange(2) else [f"--{key}", value]
    return Case(words, note=f"--{key} {value[:30]!r}")


# ---------------------------------------------------------------------------------------------------- places

_DEVICES = [
    "/dev/zero",
    "/dev/stdin",
    "/dev/random",
    "/dev/null",
    "/dev/full",
    "/dev/tty",
    "/proc/self/fd/0",
    "/proc/kmsg",
]


def places(r: random.Random, good: Good) -> Case:
    """A device, a pipe, a loop of links, or a folder as each path that is read or written."""
    special: dict[str, Content] = {
        "pipe": fifo,
        "loop": lambda path: path.symlink_to(path.name),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "device": linked_device(r.choice(_DEVICES[:4])),
        "unreachable": lambda path: path.symlink_to("/proc/1/root/x"),
    }
    kind = r.choice([*special, "direct", "long", "NUL", "below"])
    name = {
        "direct": r.choice(_DEVICES),
        "long": "x" * r.choice([300, 5000]),
        "NUL": "a\0b",
        "below": "good.png/x",
    }.get(kind, "odd")
    files: dict[str, Content] = {"good.png": png()} | ({"odd": special[kind]} if kind in special else {})
    ending = r.choice(["", ".png", ".npz", ".zip", ".pkl", ".pt", ".safetensors", ".yaml", ".json"])
    if kind in special:
        files[f"odd{ending}"] = files.pop("odd")
        name = f"odd{ending}"
    written = f"{name}/x.png" if kind not in ("long", "NUL") else name
    words = r.choice(
        [
            model_command(r, name),
            data_command(r, name),
            data_command(r, name),
            ["evaluate", "mnist-test", "--reference", name],
            ["evaluate", "mnist-test", "--reference", "mnist-test", "--features", f"onnx:{name}"],
            ["evaluate", "good.png", "--features", "inception", "--features-path", name],
            ["evaluate", "--features", "effnet-lite0", "--features-path", name, "--reference", "mnist-test"],
            ["search", "--reference", name],
            ["search", "--task", "vary", "--images", name],
            ["search", "--task", "inpaint", "--images", "good.png", "--mask", name],
            ["edit", "inpaint", "--input", "good.png", "--mask", name, "--output", "o.png"],
            ["edit", "interpolate", "--input", "good.png", name, "--output", "o.png"],
            ["edit", "vary", "--input", "good.png", "--output", written],
            ["edit", "vary", "--input", "good.png", "--output", "o.png", "--sheet", written],
            ["sample", "--num-images", "1", "--output", written],
            ["convert", str(good.model), written],
            ["train", "mnist-quick", "--output", f"{name}/run" if kind != "NUL" else name],
            ["train", "--resume", name],
            ["train", name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"],
            ["train", "mnist-cd", "--teacher", name],
            ["recipes", name if name.endswith(".yaml") else f"./{name}.yaml"],
            ["demo", "--output", written],
            ["evaluate", "mnist-test", "--reference", "mnist-test", "--metrics", "fd", "--output", f"{name}/m.json"],
        ]
    )
    return Case(words, files, note=f"{kind} {name[:40]!r}")


def linked_device(device: str) -> Content:
    return lambda path: path.symlink_to(device)


# ---------------------------------------------------------------------------------------------------- names

_ODD_NAMES = [
    "a\nb",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\rb",
    "\u202eevil",
    "```\n# title",
    "<script>alert(1)</script>",
    "tab\tname",
    "del\x7f",
    "c1\x9b31m",
    "line\u2028sep",
    "%d%s",
    "{x}",
    "`x`",
    "--flag",
    "bad\udcff",
    "[red]x[/red]",
    "a" * 200,
    "note: fine\nunistep: error: other",
]


def names(r: random.Random, good: Good) -> Case:
    """Inputs that are damaged, and have names that a terminal or Markdown would obey."""
    name = r.choice(_ODD_NAMES)
    safe = f"./{name}" if name.startswith("-") else name
    broken = r.randbytes(100)
    choice = r.randrange(5)
    if choice == 0:
        return Case(model_command(r, f"{safe}.pkl"), {f"{name}.pkl": broken}, note=repr(name))
    if choice == 1:
        return Case(data_command(r, f"{safe}.npz"), {f"{name}.npz": broken}, note=repr(name))
    if choice == 2:
        files: dict[str, Content] = {f"data/{name}.png": broken, "data/good.png": png()}
        return Case(data_command(r, "data"), files, note=repr(name))
    if choice == 3:
        return Case(
            ["recipes", f"{safe}.yaml"],
            {f"{name}.yaml": f"{name}: 1\n".encode("utf-8", "surrogateescape")},
            note=repr(name),
        )
    return Case(
        r.choice([model_command(r, safe), data_command(r, safe), ["train", safe], ["recipes", safe]]), note=repr(name)
    )
