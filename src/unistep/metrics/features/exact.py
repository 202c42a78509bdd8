"""Convolutions in full fp32 on GPUs: features are compared to the fourth digit, and TF32 keeps three."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """While entered, cuDNN does not round the inputs of fp32 convolutions to TF32, as it does by default.

    Args:
        device: device of the convolutions.
    """
    if device.type != "cuda":
        yield
        return
    setting = torch.backends.cudnn
    before = setting.allow_tf32
    setting.allow_tf32 = False
    try:
        yield
    finally:
        setting.allow_tf32 = before
