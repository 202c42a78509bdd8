"""Inputs on which a program is compared with the model, and on which it is calibrated: images of the model's own."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unistep.core.noise import karras_sigma
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom, image_seeds
from unistep.exporting.programs import DenoiserProgram, EditProgram, Program
from unistep.formats.model import ModelInfo

MOST_CLASSES = 100
"""Classes that are tried in turn, at most."""

_LOW = 0.02
_ENDS = (0.0, 0.05, 0.3, 0.7, 1.0)  # of a flow map's trajectories, in units of the noise level they begin at


class Cases:
    """Inputs of a program, one batch after the other: name of the noise level, its sigma, and the tensors.

    The images of a batch and their classes are the same at all noise levels, with noise of their own. Further classes
    follow at high noise, for which no image has to be made: of a network of hundreds of millions of parameters that
    would be most of the work.

    Args:
        program: program over the model in fp32.
        info: noise range of the model.
        batches: sizes of the batches, at low, middle and high noise; and as many more as it takes for every class.
        seed: seed of the images.
    """

    def __init__(self, program: Program, info: ModelInfo, batches: Sequence[int], seed: int = 0) -> None:
        self.program, self.info, self.batches, self.seed = program, info, batches, seed
        self.made, self.classes = 0, 0

    def __iter__(self) -> Iterator[tuple[int, str, float | None, tuple[Tensor, ...]]]:
        levels: list[tuple[str, float | None]] = [("", None)]
        if isinstance(self.program, DenoiserProgram):
            info = self.info
            middle = float(karras_sigma(torch.tensor(0.5), 2, info.sigma_min, info.sigma_max, info.rho))
            levels = [("low", max(_LOW, info.sigma_min)), ("middle", middle), ("high", info.sigma_max)]
        images: dict[int, _Images] = {}
        for noise, sigma in levels:
            for i, batch in enumerate(self.batches):
                if i not in images:
                    images[i] = self.images(batch)
                yield batch, noise, sigma, self.inputs(batch, sigma, images[i])
        noise, sigma = levels[-1]
        batch = max(self.batches)
        while self.classes < min(self.program.num_classes, MOST_CLASSES):
            hidden = self.images(batch, hidden=sigma is not None)
            yield batch, noise, sigma, self.inputs(batch, sigma, hidden)

    @torch.no_grad()
    def images(self, batch: int, *, hidden: bool = False) -> "_Images":
        """Returns images of the next classes.

        Args:
            batch: number of images.
            hidden: whether they are to be hidden by noise, so that any will do.
        """
        classes = self.program.num_classes
        spread = max(classes / MOST_CLASSES, 1)
        labels = torch.tensor([int((self.classes + i) * spread) % max(classes, 1) for i in range(batch)])
        self.classes += batch
        if not isinstance(self.program, DenoiserProgram | EditProgram):
            return _Images(labels, None)
        if hidden:
            return _Images(labels, torch.zeros(batch, *self.program.shape))
        random = ImageRandom(image_seeds(self.seed, range(self.made, self.made + batch)))
        top, more = torch.full((batch,), self.info.sigma_max), (labels,) if classes else ()
        x0 = self.program.denoiser(self.info.sigma_max * random.randn(*self.program.shape), top, *more).clamp(-1, 1)
        return _Images(labels, x0)

    @torch.no_grad()
    def inputs(self, batch: int, sigma: float | None, images: "_Images | None" = None) -> tuple[Tensor, ...]:
        """Returns the inputs of the next images.

        Args:
            batch: number of images.
            sigma: noise level; None for programs that begin at noise.
            images: the images and their classes; None makes some.
        """
        labels, x0 = images or self.images(batch)
        random = ImageRandom(image_seeds(self.seed, range(self.made, self.made + batch)))
        given: dict[str, Any] = {"class_labels": labels.to(torch.int32), **self._further(batch, sigma)}
        if x0 is not None:
            random.randn(*self.program.shape)  # the draw that images are made of
            given["image"] = to_uint8(x0).permute(0, 2, 3, 1).contiguous()
            if sigma is not None:
                given["sigma"] = torch.full((batch,), sigma)
                given["x_t"] = x0 + sigma * random.randn(*self.program.shape)
            height, width = self.program.shape[1:]
            mask = torch.zeros(batch, height, width, dtype=torch.uint8)
            for i in range(batch):  # of every image another part
                mask[i, i % 3 * height // 4 : height // 2 + i % 3 * height // 4] = 255
            given["mask"] = mask
        port = next((port for port in self.program.inputs if port.name == "noise"), None)
        if port is not None:
            draws = [random.randn(*self.program.shape) for _ in range(port.shape[0])]
            given["noise"] = torch.stack(draws, dim=1)
        self.made += batch
        return tuple(given[port.name] for port in self.program.inputs)

    def _further(self, batch: int, sigma: float | None) -> dict[str, Tensor]:
        """Ends of trajectories, and scales of guidance: of every image another."""
        numbers = [*range(self.made, self.made + batch)]
        ends = [_ENDS[i % len(_ENDS)] * (sigma or 0) for i in numbers]
        own = self.program.guidance or 1.0
        scales = [(own, 1.0, own + 1.0)[(i // len(_ENDS) + i) % 3] for i in numbers]
        return {"sigma_end": torch.tensor(ends), "guidance_scale": torch.tensor(scales)}


class _Images(NamedTuple):
    """Classes of images, and images in [-1, 1]; None where a program begins at noise."""

    labels: Tensor
    x0: Tensor | None
