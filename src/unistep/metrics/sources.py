"""Where the images that are measured come from: data that is there, or a model that makes them on the fly.

A source gives any stretch of its images, the same whenever and wherever it is asked, so that several processes can
share them and a broken-off evaluation can go on. Its digest is a hash of what the images are: features are kept by it.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.model import LoadedModel
from unistep.generation.generate import generate
from unistep.generation.plan import Plan
from unistep.generation.settings import run_settings, weights_digest

_DIGEST_IMAGES = 4096


@runtime_checkable
class ImageSource(Protocol):
    """Images 0 to `count` - 1, all of one shape."""

    @property
    def name(self) -> str:
        """As the user named it, for messages."""
        ...

    @property
    def count(self) -> int:
        """How many images there are."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what determines image i for every i; not of how many are asked for."""
        ...

    @property
    def batch(self) -> int:
        """How many images are best asked for at once: a multiple of 64, up to 256."""
        ...

    def images(self, part: range) -> UInt8[Tensor, "B C H W"]:
        """The images of `part`, on the CPU."""
        ...

    def describe(self) -> dict[str, Any]:
        """What there is to know of the images, as JSON takes it."""
        ...


@dataclass(frozen=True, eq=False)
class DataSource:
    """Images that are there.

    Args:
        pixels: uint8 [N, C, H, W], in memory or memory-mapped.
        name: for messages.
        count: the first so many of them; None is all.

    Raises:
        UserError: they are not uint8, not of that shape, or fewer than `count`.
    """

    pixels: Tensor
    name: str
    first: int | None = None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != torch.uint8:
            low, high = (f"{v:g}" for v in pixels.aminmax()) if pixels.numel() else ("nothing", "nothing")
            raise UserError(
                f"{self.name}: the images are {pixels.dtype} from {low} to {high}, measures take uint8 from 0 to 255; "
                "for x in [-1, 1]: (x.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)"
            )
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise UserError(f"{self.name}: images are [N, C, H, W] with C = 1 or 3, these are {list(pixels.shape)}")
        if self.first is not None and not 1 <= self.first <= len(pixels):
            raise UserError(f"{self.name} has {len(pixels)} images, {self.first} are asked for; ask for fewer")

    @property
    def count(self) -> int:
        return len(self.pixels) if self.first is None else self.first

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(f"uint8 {list(self.shape)} {self.count}\n".encode())
        for start in range(0, self.count, _DIGEST_IMAGES):
            digest.update(self.images(range(start, min(start + _DIGEST_IMAGES, self.count))).contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def batch(self) -> int:
        return 64

    def images(self, part: range) -> UInt8[Tensor, "B C H W"]:
        return self.pixels[part.start : part.stop]

    def describe(self) -> dict[str, Any]:
        return {"kind": "images", "name": self.name, "count": self.count, "shape": self.shape, "sha256": self.digest}


@dataclass(frozen=True, eq=False)
class ModelSource:
    """Images that a model makes when they are asked for; none is stored.

    Args:
        model: with its network in fp32: the digest is taken of it.
        plan: how it is sampled.
        count: how many images there are.
        seed: of the run; image i is made from seed and i alone.
        labels: the class of each image; None for unconditional models.
        batch_size: images at once on an accelerator.
        device: of the model.
        dtype: what the network computes in, for the digest and the report.
        labelling: how the labels were chosen, in words; part of the digest.
    """

    model: LoadedModel
    plan: Plan
    count: int
    seed: int
    labels: Int64[Tensor, " N"] | None
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    labelling: str

    @property
    def name(self) -> str:
        return str(self.model.path)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.model.image_shape

    @property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        text = json.dumps(self._settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        settings = run_settings(
            weights=weights_digest(self.model.denoiser),
            info=self.model.info,
            plan=self.plan,
            shape=self.shape,
            num_images=self.count,
            labels=self.labels,
            seed=self.seed,
            dtype=str(self.dtype).removeprefix("torch."),
        )
        # Image i is the same whatever the number of images.
        del settings["num_images"]
        return settings | {"class labels": self.labelling}

    @property
    def batch(self) -> int:
        # What an accelerator computes at once; a CPU takes few, whatever is asked for.
        return 64 if self.device.type == "cpu" else min(max(self.batch_size // 64, 1) * 64, 256)

    def images(self, part: range) -> UInt8[Tensor, "B C H W"]:
        labels = None if self.labels is None else self.labels[part.start : part.stop]
        made = generate(
            self.model.denoiser,
            self.plan,
            self.shape,
            part,
            seed=self.seed,
            labels=labels,
            batch_size=self.batch_size,
            device=self.device,
        )
        return torch.cat(list(made))

    def describe(self) -> dict[str, Any]:
        info = {name: value for name, value in dataclasses.asdict(self.model.info).items() if value is not None}
        return {
            "kind": "model",
            "name": self.name,
            "count": self.count,
            "evaluations": self.plan.nfe,
            **self._settings,
            "model's noise range and scaling": info,
            "batch size": self.batch_size,
            "device": str(self.device),
            "sha256": self.digest,
        }
