"""Inputs on which a program is compared with the model, and on which it is calibrated: images of the model's own."""

from collections.abc import Iterator, Sequence
from typing import Any

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

    Every batch takes the next images of the seed, and the next classes.

    Args:
        program: program over the model in fp32.
        info: noise range of the model.
        batches: sizes of the batches, at low, middle and high noise; and as many more as it takes for every class.
        seed: seed of the images.
    """

    def __init__(self, program: Program, info: ModelInfo, batches: Sequence[int], seed: int = 0) -> None:
        self.program, self.info, self.batches, self.seed = program, info, batches, seed
        self.made = 0

    def __iter__(self) -> Iterator[tuple[int, str, float | None, tuple[Tensor, ...]]]:
        levels: list[tuple[str, float | None]] = [("", None)]
        if isinstance(self.program, DenoiserProgram):
            info = self.info
            middle = float(karras_sigma(torch.tensor(0.5), 2, info.sigma_min, info.sigma_max, info.rho))
            levels = [("low", max(_LOW, info.sigma_min)), ("middle", middle), ("high", info.sigma_max)]
        for noise, sigma in levels:
            for batch in self.batches:
                yield batch, noise, sigma, self.inputs(batch, sigma)
        noise, sigma = levels[len(levels) // 2]
        while self.made < min(self.program.num_classes, MOST_CLASSES):
            batch = max(self.batches)
            yield batch, noise, sigma, self.inputs(batch, sigma)

    @torch.no_grad()
    def inputs(self, batch: int, sigma: float | None) -> tuple[Tensor, ...]:
        """Returns the inputs of the next images.

        Args:
            batch: number of images.
            sigma: noise level; None for programs that begin at noise.
        """
        random = ImageRandom(image_seeds(self.seed, range(self.made, self.made + batch)))
        classes = self.program.num_classes
        spread = max(classes / MOST_CLASSES, 1)
        labels = torch.tensor([int((self.made + i) * spread) % max(classes, 1) for i in range(batch)])
        given: dict[str, Any] = {"class_labels": labels.to(torch.int32), **self._further(batch, sigma)}
        more = (labels,) if classes else ()
        if isinstance(self.program, DenoiserProgram | EditProgram):
            top = torch.full((batch,), self.info.sigma_max)
            x0 = self.program.denoiser(self.info.sigma_max * random.randn(*self.program.shape), top, *more).clamp(-1, 1)
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
