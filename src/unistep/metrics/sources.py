"""Sources of images to evaluate: data, or a model that makes images when they are asked for.

A source gives any range of its images, the same at any time and in any process, so that several processes can share
them and an interrupted evaluation can go on. Features are kept by its digest, a hash of everything that determines the
images.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.data.streaming import StreamedImages
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
        """Name in messages, as the user gave it."""
        ...

    @property
    def count(self) -> int:
        """Number of images."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what determines image i for every i; a model's is not of their number."""
        ...

    @property
    def batch(self) -> int:
        """Number of images that are best asked for at once: a multiple of 64, up to 256."""
        ...

    @property
    def labels(self) -> Int64[Tensor, " N"] | None:
        """Class of each image; None where there are no classes."""
        ...

    def images(self, part: range) -> UInt8[Tensor, "B C H W"]:
        """Returns the images of `part` on the CPU."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns a description of the images for reports, as JSON takes it."""
        ...


@dataclass(frozen=True, eq=False)
class DataSource:
    """Images of a dataset or of a tensor.

    Args:
        pixels: images, uint8 [N, C, H, W], in memory, memory-mapped or streamed.
        name: name in messages.
        first: number of images to take, from the first on; None takes all.
        classes: class of each of the pixels' images; None where they have none, or where nobody asks.

    Raises:
        UserError: they are not uint8, not of that shape, or fewer than `first`.
    """

    pixels: Tensor | StreamedImages
    name: str
    first: int | None = None
    classes: Int64[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if isinstance(pixels, Tensor) and pixels.dtype != torch.uint8:
            low, high = (f"{v:g}" for v in pixels.aminmax()) if pixels.numel() else ("nothing", "nothing")
            raise UserError(
                f"{self.name}: the images are {pixels.dtype} from {low} to {high}, metrics take uint8 from 0 to 255; "
                "for x in [-1, 1]: (x.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)"
            )
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise UserError(f"{self.name}: images are [N, C, H, W] with C = 1 or 3, not {list(pixels.shape)}")
        if self.first is not None and not 1 <= self.first <= len(pixels):
            raise UserError(f"`num_images` {self.first}: {self.name} has {len(pixels)} images; give at most that")

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

    @property
    def labels(self) -> Int64[Tensor, " N"] | None:
        return None if self.classes is None else self.classes[: self.count]

    def images(self, part: range) -> UInt8[Tensor, "B C H W"]:
        return self.pixels[part.start : part.stop]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "images", "name": self.name, "count": self.count, "shape": self.shape, "sha256": self.digest}


@dataclass(frozen=True, eq=False)
class ModelSource:
    """Images that a model makes when they are asked for; none is stored.

    Args:
        model: model with the weights of its file, of which the digest is taken.
        plan: sampler of the model.
        count: number of images.
        seed: seed of the run; image i uses the stream (seed, i).
        labels: class of each image; None for unconditional models.
        batch_size: number of images computed at once on an accelerator.
        device: device of the model.
        dtype: precision that the network computes in, for the digest and the report.
        labelling: description of the choice of the labels; part of the digest.
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

    def to_dict(self) -> dict[str, Any]:
        info = {name: value for name, value in self.model.info.settings().items() if value is not None}
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
