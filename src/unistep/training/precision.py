"""The arithmetic of training on a device."""

import torch

from unistep.errors import UserError
from unistep.training.config import Precision


def pick_precision(precision: Precision, device: torch.device) -> str:
    """Accelerate's name of the precision; "auto" takes bf16 where the machine multiplies it fast, else fp32.

    Raises:
        UserError: fp16 without a CUDA device.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision fp16 needs a CUDA device, this is {device.type}; give auto, fp32 or bf16")
    if precision != "auto":
        return "no" if precision == "fp32" else precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "no"
    return "no"
