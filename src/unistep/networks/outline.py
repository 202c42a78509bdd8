"""The layers of a network in a few numbers, as `unistep inspect` shows them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FURTHER_INPUTS = ("end_embedding", "guidance_embedding")
"""Fields of a config that a network has further inputs by."""


@dataclass(frozen=True)
class Resolution:
    """Feature maps of one resolution.

    Args:
        size: side in pixels.
        channels: number of channels.
        attention: true if blocks of this resolution attend.
    """

    size: int
    channels: int
    attention: bool


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The layers of a U-Net.

    Args:
        resolutions: feature maps, finest first.
        patch_size: side in pixels of the patches that are folded into channels; 1 is none.
        blocks_per_resolution: residual blocks of each resolution on the way down; one more on the way up.
        attention_head_dim: channels of an attention head; None is a single head.
        middle_attention: true if the middle block attends.
        embedding: way in which the noise level and the class enter, in words.
        further: inputs beside these, in words; empty for none.
    """

    resolutions: tuple[Resolution, ...]
    patch_size: int = 1
    blocks_per_resolution: int
    attention_head_dim: int | None
    middle_attention: bool
    embedding: str
    further: str = ""


def resolutions(size: int, widths: Sequence[int], attends: Sequence[bool]) -> tuple[Resolution, ...]:
    """Resolutions each of half the size of the one before.

    Args:
        size: side of the first in pixels.
        widths: channels of each.
        attends: true for each that attends.
    """
    rows = enumerate(zip(widths, attends, strict=True))
    return tuple(Resolution(size >> i, width, attention) for i, (width, attention) in rows)


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a network's config by name; of further inputs those that it has.

    So what is written of a network without them is as it was before there were any.
    """
    return {name: v for name, v in dataclasses.asdict(config).items() if v or name not in FURTHER_INPUTS}


def further_inputs(end: bool, guidance: bool) -> str:
    """The further inputs of a network in words: the end of the trajectory, the scale of guidance."""
    words = ["end of the trajectory"] * end + ["scale of guidance"] * guidance
    return " and ".join(words)
