"""Trunks compiled ahead of time by AOTInductor into trunk.pt2: machine code of this processor, made here."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unistep.prepared.network import Trunk

FILE = "trunk.pt2"


@torch.no_grad()
def make(trunk: Any, example: tuple[Tensor, Tensor], folder: Path, precision: str) -> None:
    """Compiles a trunk.

    Args:
        trunk: `TrunkAlone` of a network in fp32, which is cast.
        example: input of two or more images.
        folder: folder of the file.
        precision: fp32 or bf16.
    """
    if precision == "bf16":
        trunk.network.cast_blocks(torch.bfloat16)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    program = torch.export.export(_Fp32(trunk), example, dynamic_shapes=({0: batch}, {0: batch}))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / FILE))


def open_trunk(folder: Path, precision: str, tile: int) -> Trunk:
    """Opens a trunk that `make` wrote. It executes what the file contains: it must be one of this machine's cache."""
    run = torch._inductor.aoti_load_package(str(folder / FILE))
    return lambda x, emb: tuple(run(x, emb))


class _Fp32(nn.Module):
    """A trunk whose features are fp32, whatever it computes in."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, ...]:
        return tuple(h.float() for h in self.trunk(x, emb))
