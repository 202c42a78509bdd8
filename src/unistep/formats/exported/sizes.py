"""Bounds on the tensors that an exported program may make, by the images that it is for.

A file of a few bytes can ask for any amount of memory: by a constant that is expanded, by sizes that are computed, by
chains of operations that each double. So sizes are computed from the graph before a runtime sees it, at a batch of 1
and a large one, and bounded by what networks of such images need.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN

BATCHES = (1, 256)
"""Batches at which sizes are computed: what grows faster than the batch is found at the second."""

_OF_IMAGE = 1 << 14  # attention at full size takes the most
_LEAST, _MOST = 1 << 22, 1 << 28
_ALIVE = 6  # such tensors at a time: the skip connections


@dataclass(frozen=True)
class Limits:
    """The numbers that tensors of a program may hold for each image of the batch.

    Args:
        tensor: numbers of one.
        alive: numbers of all that are held at the same time.
        constants: numbers of those that depend on no input.
    """

    tensor: int
    alive: int
    constants: int


def limits(shape: tuple[int, int, int], stored: int) -> Limits:
    """Returns the limits of a program.

    Args:
        shape: channels, height and width of its images.
        stored: numbers that its file stores.
    """
    tensor = min(max(prod(shape) * _OF_IMAGE, _LEAST), _MOST)
    return Limits(tensor, _ALIVE * tensor, 4 * stored + _LEAST)


@dataclass(frozen=True)
class Step:
    """An operation, by the numbers of its tensors.

    Args:
        operator: name of the operator.
        inputs: keys of the tensors that it takes.
        outputs: numbers of those that it makes, by key.
    """

    operator: str
    inputs: Sequence[object]
    outputs: Mapping[object, int]


def check_steps(
    found: Mapping[int, Sequence[Step]],
    constant: Collection[object],
    results: Sequence[object],
    limits: Limits,
    path: Path,
) -> None:
    """Refuses operations whose tensors are beyond the limits, one by one or together, or outgrow the batch.

    Args:
        found: operations in the order in which they are computed, by the size of the batch: those of `BATCHES`.
        constant: keys of the tensors that are stored.
        results: keys of the outputs of the program.
        limits: limits for each image.
        path: file, for messages.

    Raises:
        UserError: they do.
    """
    for batch, steps in found.items():
        _check_held(steps, constant, results, limits, batch, path)
    few, many = ({key: n for step in found[batch] for key, n in step.outputs.items()} for batch in BATCHES)
    if any(numbers * BATCHES[0] > few.get(key, 0) * BATCHES[1] for key, numbers in many.items()):
        raise UserError(f"{path} is not opened: it holds a tensor that grows faster than the batch", AGAIN)


def _check_held(
    steps: Sequence[Step],
    constant: Collection[object],
    results: Sequence[object],
    limits: Limits,
    batch: int,
    path: Path,
) -> None:
    """Refuses tensors beyond the limits at one size of the batch."""
    uses = Counter(key for step in steps for key in step.inputs)
    uses.update(results)
    fixed, alive, held, constants = set(constant), {}, 0, 0
    for step in steps:
        if max(step.outputs.values(), default=0) > limits.tensor * batch:
            held_by = f"its operation {step.operator[:60]} makes a tensor larger than any of a model"
            raise UserError(f"{path} is not opened: {held_by}", AGAIN)
        if all(key in fixed for key in step.inputs):  # a runtime computes these once, and keeps them
            fixed |= set(step.outputs)
            constants += sum(step.outputs.values())
        else:
            alive |= step.outputs
            held += sum(step.outputs.values())
        if held > limits.alive * batch or constants > limits.constants:
            raise UserError(f"{path} is not opened: its operations hold more memory than those of any model", AGAIN)
        uses.subtract(step.inputs)
        held -= sum(alive.pop(key, 0) for key in {*step.inputs, *step.outputs} if not uses[key])
