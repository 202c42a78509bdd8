"""Lanes: processes that compute batches of small images side by side on a CPU.

The network of a small image is hundreds of short operations. In the server's own process each of them waits for the
interpreter's lock, which the answers to clients hold; and where an operation is divided among the cores, all of them
wait for the one that the server is using. A lane is a process of its own with its share of the cores, so neither
happens. It opens the models itself, and is used when its images have the bits of the server's own: with fewer threads
other numbers of images at once may keep them.

The server writes lines of JSON to the lane's input; the lane answers with a line, and with the bytes of images. It ends
when its input does.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.model import LoadedModel
from unistep.generation.plan import Plan
from unistep.runtime.child import child_environment, own_output
from unistep.serving.batch import Row, fingerprint, make_rows
from unistep.serving.model import ServedModel, trial_plans
from unistep.workflows.models import load

_PLANS = {plan.__name__: plan for plan in get_args(Plan)}
_CANCEL = b"\n"
_SECONDS_TO_END = 5
_NICE = 10  # below the server, so that answers go out, and new requests come in, while batches are computed


class LaneDied(Exception):
    """The process of a lane ended while it computed."""


class Lane:
    """A process that computes the images of some models.

    Args:
        models: models that it computes, by name; each on a CPU, its images free of their places in a batch.
        options: arguments of `load` of each model, by name.
        threads: threads that it computes with.
        expected: digest of the images of a whole tile of each model, by name; see `fingerprints`.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        options: Mapping[str, Mapping[str, Any]],
        threads: int,
        expected: Mapping[str, str],
    ) -> None:
        self._models, self._expected = dict(models), expected
        # Name and numbers of images at once, by the model's id.
        self._tiles: dict[int, tuple[str, tuple[int, ...]]] = {}
        env = child_environment({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
        command = [sys.executable, "-m", "unistep.serving.lane"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._ready: bool | None = None
        self._opening = threading.Lock()
        named = {name: {"load": dict(options[name]), "tiles": model.tiles} for name, model in models.items()}
        self._write({"threads": threads, "models": named})

    @property
    def ready(self) -> bool:
        """Whether the lane has opened its models and found its images equal to the server's; does not wait for it."""
        with self._opening:
            if self._ready is None and self._arrived(0):
                try:
                    self._compare(self._read()["fingerprints"])
                except LaneDied:
                    pass
                self._ready = bool(self._tiles)
        return bool(self._ready)

    @property
    def failed(self) -> bool:
        """Whether the lane will never be ready: it ended, or its images have other bits."""
        return not self.ready and self._ready is not None

    def wait(self, seconds: float) -> bool:
        """Waits until the lane is ready or has failed; returns whether it is ready."""
        end = time.monotonic() + seconds
        while not self.ready and self._ready is None and time.monotonic() < end:
            time.sleep(0.02)  # several threads may wait, of which one reads what arrives
        return self.ready

    def computes(self, model: ServedModel) -> bool:
        """Whether the lane is ready and its images of a model have the server's bits."""
        return self.ready and id(model) in self._tiles

    def make(
        self,
        model: ServedModel,
        plan: Plan,
        rows: Sequence[Row],
        unwanted: Callable[[], bool] = lambda: False,
    ) -> UInt8[Tensor, "N C H W"] | None:
        """Makes the images of rows, in their order; returns None where nobody wants them any more.

        Args:
            model: one of the lane's models.
            plan: noise levels or solver.
            rows: images to be made.
            unwanted: returns whether nobody wants the images any more; asked several times a second.

        Raises:
            LaneDied: the process ended.
            UserError: an output of the network is not finite.
        """
        listed = [(row.key, row.index, row.label) for row in rows]
        asked = {"plan": type(plan).__name__, "values": asdict(plan), "rows": listed}
        name, tiles = self._tiles[id(model)]
        self._write({"model": name, **asked, "tile": next((one for one in tiles if one >= len(rows)), tiles[-1])})
        cancelled = False
        while not self._arrived(0.1):
            if not cancelled and unwanted():
                cancelled = True
                self._send(_CANCEL)
        answer = self._read()
        if "error" in answer:
            raise UserError(**answer["error"]) if "problem" in answer["error"] else RuntimeError(answer["error"])
        if not answer["images"]:
            return None
        shape = (len(rows), *model.shape)
        size = torch.Size(shape).numel()
        pixels = self._output.read(size)
        if len(pixels) != size:
            raise LaneDied
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(shape)

    def close(self, seconds: float = 0.0) -> None:
        """Ends the process: at once, or when what it computes is done, but after `seconds` at the latest."""
        try:
            self._input.close()
        except OSError:
            pass  # it has ended
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_SECONDS_TO_END)
        self._output.close()

    def _compare(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """Notes which numbers of images at once give the server's bits; a model's whole tile has to."""
        for name, model in self._models.items():
            equal = tuple(int(tile) for tile, digest in found[name].items() if digest == self._expected[name])
            if equal and equal[-1] == model.tile:
                self._tiles[id(model)] = (name, equal)

    def _arrived(self, seconds: float) -> bool:
        return bool(select.select([self._output], [], [], seconds)[0])

    def _read(self) -> dict[str, Any]:
        line = self._output.readline()
        if not line.endswith(b"\n"):
            raise LaneDied
        return json.loads(line)

    def _write(self, message: Mapping[str, Any]) -> None:
        self._send(json.dumps(message).encode() + b"\n")

    def _send(self, content: bytes) -> None:
        try:
            self._input.write(content)
            self._input.flush()
        except OSError:
            raise LaneDied from None


def fingerprints(loaded: LoadedModel, tiles: Sequence[int]) -> dict[str, str]:
    """Returns digests of images by the number that is computed at once.

    Args:
        loaded: model on a CPU.
        tiles: numbers of images at once.
    """
    plans, most = trial_plans(loaded), tiles[-1]
    parts = (loaded.denoiser, plans, loaded.image_shape, loaded.num_classes)
    return {str(tile): fingerprint(*parts, tile, most, "cpu") for tile in tiles}


# ------------------------------------------------------------------------------------------------------ the process


class _Input:
    """Lines of a file descriptor, of which it can be asked whether another has begun to arrive."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._held = descriptor, b""

    def line(self) -> bytes:
        """Returns the next line; empty at the end."""
        while b"\n" not in self._held:
            part = os.read(self._descriptor, 1 << 16)
            if not part:
                return b""
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        return line + b"\n"

    def begun(self) -> bool:
        """Whether more has arrived, or the end."""
        return bool(self._held) or bool(select.select([self._descriptor], [], [], 0)[0])


def run(source: _Input, target: IO[bytes]) -> None:
    """Opens the models of the first line, and makes the images of every other one until the input ends."""
    settings = json.loads(source.line())
    torch.set_num_threads(settings["threads"])
    models, found = {}, {}
    for name, one in settings["models"].items():
        models[name] = load(**one["load"])
        found[name] = fingerprints(models[name], one["tiles"])
    _answer(target, {"fingerprints": found})
    while line := source.line():
        if line == _CANCEL:
            continue  # what it cancelled was done already
        asked = json.loads(line)
        loaded = models[asked["model"]]
        values = {name: tuple(one) if isinstance(one, list) else one for name, one in asked["values"].items()}
        rows = [Row(*row) for row in asked["rows"]]
        try:
            images = make_rows(
                loaded.denoiser,
                _PLANS[asked["plan"]](**values),
                loaded.image_shape,
                rows,
                tile=asked["tile"],
                by_place=False,
                unwanted=source.begun,
            )
        except UserError as error:
            _answer(target, {"error": {"problem": error.problem, "remedy": error.remedy, "field": error.field}})
        except Exception as error:
            _answer(target, {"error": f"{type(error).__name__}: {error}"})
        else:
            content = b"" if images is None else images.contiguous().numpy().tobytes()
            _answer(target, {"images": 0 if images is None else len(images)}, content)


def _answer(target: IO[bytes], head: Mapping[str, Any], content: bytes = b"") -> None:
    target.write(json.dumps(head).encode() + b"\n" + content)
    target.flush()


def main() -> None:
    """Runs a lane on the process's input and output."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a terminal or a service: the server ends it
    os.nice(_NICE)
    answers = own_output()
    try:
        run(_Input(0), answers.buffer)
    except BrokenPipeError:
        pass  # the server is gone


if __name__ == "__main__":
    main()
