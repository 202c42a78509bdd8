"""Programs as graphs of PyTorch's exporter, with a batch of any size."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection, export

from unistep.exporting.programs import Program

MOST_BATCH = 4096


def example_inputs(program: Program, batch: int) -> tuple[torch.Tensor, ...]:
    """Returns inputs of a program for its interface alone; their values are of no use.

    Args:
        program: program.
        batch: number of images.
    """
    return tuple(torch.zeros(batch, *port.shape, dtype=port.torch_dtype) for port in program.inputs)


def trace(program: Program) -> ExportedProgram:
    """Returns the graph of a program, traced at batch 2: at 1 attention would keep the size.

    Args:
        program: program in eval mode.
    """
    batch = Dim("batch", min=1, max=MOST_BATCH)
    _fill_caches(program)
    inputs, shapes = example_inputs(program, 2), ShapesCollection()
    for tensor in inputs:
        shapes[tensor] = {0: batch}
    with torch.no_grad(), quiet():
        return export(
            program,
            inputs,
            dynamic_shapes=shapes.dynamic_shapes(program, inputs),
            strict=False,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps notes of exporters on their own progress from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fill_caches(program: Program) -> None:
    """Computes tables of noise levels, which are kept, before tensors without values would be kept in their place."""
    levels = getattr(getattr(program.denoiser, "scaling", None), "levels", None)
    if levels is not None:
        levels()
