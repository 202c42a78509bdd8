"""The entry point: finds the command, runs it, and turns user errors into one line and exit code 2.

Nothing heavy is imported here: `unistep --help` answers at once.
"""

import errno
import importlib
import io
import os
import sys
import warnings
from typing import NoReturn

from unistep.errors import UserError
from unistep.text import did_you_mean, version_of

COMMANDS = {
    "train": "train a model by a recipe or a YAML file; resume a run",
    "plan": "plan a recipe on several devices: memory, communication, pace, hours, cost",
    "sample": "make images with a model, a run, or an embedded model",
    "edit": "inpaint, colorize, upscale, deblur, denoise, ... images with a consistency model; walks",
    "evaluate": "measure images or a model against a reference: FID, KID, precision, recall, ...",
    "search": "find the timesteps that a consistency model is best sampled with",
    "serve": "serve models over HTTP, with a page to make and edit images on",
    "demo": "see it work: one-step and two-step digits beside the teacher's 35 evaluations",
    "runs": "list the runs below a folder: state, step, speed, distances",
    "report": "write a page about a run, or about several side by side",
    "recipes": "list the recipes that ship, or print one",
    "convert": "turn a model of any format into a model folder, or into an OpenAI .pt",
    "export": "write a model as ONNX and other formats that run without PyTorch, and compare it",
    "inspect": "describe a model: architecture, noise range, classes, size",
    "ema": "average the weights of a run anew after training, with an average of any length",
    "weights": "export the weights of a run in small parts, which another machine trains on with",
    "quantize": "turn a model into int8, for CPUs, with the loss measured",
    "cache": "list or delete the models that are prepared for a runtime",
    "data": "inspect a dataset; fetch a published one; pack one into parts that travel",
}

_HELP = """usage: unistep COMMAND [options]

Consistency models: images in one network evaluation.

commands:
{commands}

`unistep COMMAND --help` lists a command's options.  `unistep --version` prints the version.

examples:
  unistep demo                                    images from the embedded models
  unistep sample --steps 2 --num-images 100       the same, your way
  unistep train mnist-quick                       train one from scratch in minutes
  unistep train mnist-quick --data.source photos/ --data.resolution 32
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 a mistake in the arguments or inputs, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _wait_asleep_in_background()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes may hold anything
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                # Those of libraries are for programmers; `python -W default -m unistep` shows them.
                warnings.showwarning = _nothing
            try:
                _run(arguments)
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _fail(f"{error.filename or arguments[0]}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):  # torch's words, on any device
            raise
        _fail("the memory is not enough; make the images, the batch, the grid or the network smaller")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _wait_asleep_in_background() -> None:
    """Lets the threads of a process of low priority sleep while they wait for each other.

    They would spin, on cores that others need more, while the one that they wait for has none. OpenMP reads the
    variable when PyTorch is imported.
    """
    if "torch" not in sys.modules and hasattr(os, "nice") and os.nice(0) > 0:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _run(arguments: list[str]) -> None:
    if arguments[0:1] == ["help"] and len(arguments) == 2:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(_HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())), end="")
        return
    if arguments[0] == "--version":
        print(f"unistep {version_of()}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        _fail(f"unknown command {name!r}{did_you_mean(name, COMMANDS)} (unistep --help lists them)")

    try:
        importlib.import_module(f"unistep.cli.{name}").run(rest)
    except UserError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name in ("accelerate", "tensorboard"):
            _fail(f"{name} needs {error.name}: pip install 'unistep[train]'")
        raise


def _nothing(*_: object) -> None:
    pass


def _fail(message: str) -> NoReturn:
    # Whose message is printable, and of bounded length.
    print(f"unistep: error: {UserError(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
