import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unistep.cli.main import COMMANDS

UNISTEP = [sys.executable, "-m", "unistep"]


def test_help_answers_at_once():
    """Best of three, for other work on the machine."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([*UNISTEP, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
    assert [name for name in COMMANDS if f"\n  {name} " not in done.stdout] == []


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["sample", "--num-imags", "3"]], ids=" ".join)
def test_what_needs_no_torch_does_not_load_it(arguments):
    code = (
        "import sys\n"
        "from unistep.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'unistep.cli.main' in sys.modules\n"
        "assert not {'torch', 'numpy', 'accelerate', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("command", [*COMMANDS, "data fetch", "data inspect", "data pack"])
def test_help_of_a_command(command):
    done = subprocess.run([*UNISTEP, *command.split(), "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: unistep {command}")


@pytest.mark.parametrize("arguments", [[], ["help"], ["-h"]])
def test_other_ways_to_the_help(run, arguments):
    outcome = run(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == run("--help").out


def test_version(run):
    from importlib.metadata import version

    assert run("--version").out == f"unistep {version('unistep')}\n"


def test_a_mistake_ends_the_process_with_2_and_one_line(tmp_path):
    done = subprocess.run([*UNISTEP, "sample", "--num-imags", "3"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == (
        "",
        "unistep: error: unknown option --num-imags; did you mean --num-images?\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "--help"]])
def test_a_reader_that_has_seen_enough(arguments, unbuffered):
    """As `unistep recipes | head -1` may be: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*UNISTEP, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trin", "train"), ("smple", "sample"), ("SAMPLE", "sample"), ("recipe", "recipes"), ("dta", "data")],
)
def test_a_mistyped_command(refused, typed, meant):
    refused([typed], repr(typed), f"did you mean {meant}?")


@pytest.mark.parametrize("typed", ["", "xyzzy", "--bogus", "-x"])
def test_what_is_like_no_command(refused, typed):
    refused([typed], repr(typed), "unistep --help")


def test_line_breaks_do_not_break_the_line(refused):
    refused(["sample", "no\nsuch\tmodel"], "no\\nsuch\\tmodel does not exist")
    refused(["train", "no\r\nsuch"], "no\\r\\nsuch")


@pytest.mark.parametrize("command", ["train", "sample", "data inspect", "demo", "convert", "inspect"])
@pytest.mark.parametrize("flag", ["--xyzzy", "--xyzzy=3", "-x", "-xyzzy"])
def test_a_flag_that_is_like_none(refused, command, flag):
    refused([*command.split(), flag], f"unknown option {flag.split('=')[0]}; see --help")


def test_more_memory_than_there_is(refused, monkeypatch):
    """Whatever asks for it: torch raises a RuntimeError, numpy a MemoryError."""
    import numpy as np
    import torch

    from unistep.cli import recipes

    for ask in (lambda _: torch.empty(1 << 60), lambda _: np.empty(1 << 58)):
        monkeypatch.setattr(recipes, "run", ask)
        refused(["recipes"], "the memory is not enough")


def test_an_error_of_our_own_is_not_hidden(run, monkeypatch):
    from unistep.cli import recipes

    for error in (RuntimeError("a bug"), ValueError("a bug"), OSError("a bug")):
        monkeypatch.setattr(recipes, "run", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error), match="a bug"):
            run("recipes")


def test_ctrl_c(run, monkeypatch):
    from unistep.cli import recipes

    monkeypatch.setattr(recipes, "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("recipes").code == 130


FLAGS = {
    "sample": ["--num-images", "--num_images", "--steps", "--timesteps", "--sigmas", "--solver", "--class-labels"]
    + ["--seed", "--batch-size", "--output", "--columns"],
    "train": ["--seed", "--precision", "--sigma_data", "--use-labels", "--data", "--data.resolution", "--data.channels"]
    + ["--network", "--network.block_out_channels", "--teacher", "--teacher.steps", "--teacher.optimizer"]
    + ["--teacher.optimizer.betas", "--student", "--student.timesteps", "--student.objective.pairs", "--student.init"]
    + ["--output", "--resume", "--config", "--print_config"],
    "data": ["--skip-bad"],
    "demo": ["--rows", "--seed", "--output"],
    "recipes": [],
}  # fmt: skip
NUMBERS = ["0", "1", "-1", "1.5", "1e3", "nan", "-inf", "9" * 30, "0,22", "0,5,3", "80,0.8", "[0, 22]", "[", "[[]]"]
WORDS = ["", "null", "true", "x", "{}", "{a: 1}", "a: b: c", "heun", "mapping", "mnist-quick", "-", "--", "--x", "ä\n"]
PLACES = ["nowhere", "file.txt", "./file.txt/x.png", "folder", "folder.png", "x.jpg", "x.npz", "/dev/null/x.png", "."]


@pytest.mark.parametrize("command", FLAGS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_arguments_cause_a_traceback(run, here, command, data):
    """The last arguments see to it that little is made: no run has data, no call of `sample` many images."""
    (here / "file.txt").write_text("no model, no recipe")
    (here / "folder").mkdir(exist_ok=True)
    (here / "folder.png").mkdir(exist_ok=True)
    values = st.sampled_from(NUMBERS + WORDS + PLACES)
    pair = st.tuples(st.sampled_from(FLAGS[command]), values) if FLAGS[command] else st.tuples(values)
    arguments = data.draw(st.lists(pair | pair | st.tuples(values), max_size=3).map(lambda pairs: sum(pairs, ())))
    first = {"train": "mnist-quick", "data": "inspect"}.get(command)
    if first and data.draw(st.integers(0, 9)):
        arguments = (first, *arguments)
    last = {"sample": ["--num-images", "1"], "train": ["--data.source", "nowhere"], "demo": ["--rows", "x"]}
    outcome = run(command, *arguments, *last.get(command, []))
    assert outcome.code in (0, 2)
    assert outcome.code == 0 or outcome.err.count("\n") == 1, outcome.err
    assert not list(here.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "a\x9b2Jb", "\u202egnp"])
def test_names_are_printed_without_codes_for_the_terminal(run, here, name):
    """Neither where they are results nor where they are refused."""
    done = run("sample", "--num-images", 1, "--output", f"{name}.png")
    assert done.code == 0 and (here / f"{name}.png").is_file()
    refused = run("inspect", f"{name}.png")
    assert refused.code == 2 and refused.err.count("\n") == 1
    for text in (done.out, refused.err):
        assert all(c.isprintable() for c in text.removesuffix("\n")), text
