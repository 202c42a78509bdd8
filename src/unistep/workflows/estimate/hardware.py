"""Hardware that a run may be planned for: an explicit table of published figures, and of the measured ones there are.

Rates are those of dense products, without sparsity. Links are bytes a second in one direction, as much as one device
can send: within a node, and between nodes with one 400 Gbit/s adapter a device, or 200 and 100 where that is usual.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from unistep.errors import UserError

GPUName = Literal["A100", "H100", "H200", "L40S", "cpu"]

UTILIZATION = 0.14
"""Share of the rate of products that a step reaches: that of `cifar10-minutes` on an H100, the only one measured.
Larger networks reach more."""

LINK_SHARE, MEMORY_SHARE = 0.75, 0.75
"""Shares of the rates of links and memory that are reached, assumed."""

OVERLAP = 0.66
"""Share of forward and backward pass during which gradients can travel: the backward pass."""


@dataclass(frozen=True)
class Hardware:
    """A device, and its links to others.

    Args:
        title: name of the device.
        tflops: rate of products by precision, in 1e12 FLOP/s.
        memory: bytes of its memory.
        bandwidth: bytes a second of its memory.
        link: bytes a second that a device sends to others of its node.
        network: bytes a second that it sends to other nodes.
        source: origin of the figures.
    """

    title: str
    tflops: dict[str, float]
    memory: int
    bandwidth: float
    link: float
    network: float
    source: str


HARDWARE = MappingProxyType(
    {
        "A100": Hardware(
            "NVIDIA A100 SXM 80 GB",
            {"no": 19.5, "bf16": 312, "fp16": 312},
            80 * 10**9,
            2.039e12,
            300e9,
            25e9,
            "NVIDIA, A100 datasheet",
        ),
        "H100": Hardware(
            "NVIDIA H100 SXM 80 GB",
            {"no": 51, "bf16": 795, "fp16": 746},
            80 * 10**9,
            3.027e12,
            450e9,
            50e9,
            "measured by benchmarks/rates.py (published: 67, 989 and 989 TFLOP/s, 3.35 TB/s); links: datasheet",
        ),
        "H200": Hardware(
            "NVIDIA H200 SXM 141 GB",
            {"no": 67, "bf16": 989, "fp16": 989},
            141 * 10**9,
            4.8e12,
            450e9,
            50e9,
            "NVIDIA, H200 datasheet",
        ),
        "L40S": Hardware(
            "NVIDIA L40S 48 GB",
            {"no": 91.6, "bf16": 362, "fp16": 362},
            48 * 10**9,
            864e9,
            32e9,
            12.5e9,
            "NVIDIA, L40S datasheet",
        ),
    }
)
"""Rows by the names that are given."""


def hardware_of(name: str) -> Hardware:
    """The row of a name.

    Raises:
        UserError: there is none.
    """
    if name not in HARDWARE:
        raise UserError(f"{name}: the figures of {', '.join(HARDWARE)} are here", "give one of them", field="gpu")
    return HARDWARE[name]
