"""The batch of a step, on the device that trains: images, classes and the words of the seeds of their noise.

Which images a step has, which of them are mirrored and what noise they get are pure functions of step and seed. They
go to the device in one copy. A dataset that fits lies there as uint8, so that a step moves no image; of a larger one
the next batch is read while the device works.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.core.random import image_seed, image_seeds, seed_words
from unistep.data.dataset import ImageDataset
from unistep.data.order import batch_flips, batch_indices

_RESIDENT_SHARE = 0.25
"""Share of an accelerator's free memory that a dataset may take."""

Part = tuple[int, int, int, int]
"""A part of a batch: step, images of the global batch, first of the part, and their number."""
_Read = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Batch:
    """A part of the batch of a step.

    Args:
        images: pixels, 0 ... 255.
        labels: class of each image; None where the network has none.
        words: low and high 32 bits of the seed of each image's noise.
        dropout_seed: seed of the dropout masks.
    """

    images: UInt8[Tensor, "B C H W"]
    labels: Int64[Tensor, " B"] | None
    words: Int64[Tensor, "2 B"]
    dropout_seed: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Images, words and, where there are any, labels."""
        return self.images, self.words, *(() if self.labels is None else (self.labels,))


class Batches:
    """Batches by the number of the step.

    Args:
        dataset: images and labels.
        device: device that trains.
        seed: seed of the order of the images and of their noise.
        flip: whether half of the images are mirrored.
        use_labels: whether the network is given class labels.
    """

    def __init__(self, dataset: ImageDataset, device: torch.device, *, seed: int, flip: bool, use_labels: bool) -> None:
        self.device, self.seed, self.flip = device, seed, flip
        self.resident = device.type == "cuda" and _fits(dataset, device)
        dataset = dataset if use_labels else replace(dataset, labels=None)
        if self.resident:
            labels = None if dataset.labels is None else dataset.labels.to(device)
            dataset = replace(dataset, images=dataset.images.to(device), labels=labels)
        self.dataset = dataset
        self._ahead: tuple[Part, Future[_Read]] | None = None
        self._reader = ThreadPoolExecutor(1) if device.type == "cuda" and not self.resident else None

    def at(self, step: int, batch_size: int, start: int = 0, size: int | None = None) -> Batch:
        """Returns the images `start` ... `start` + `size` - 1 of the global batch of a step.

        Args:
            step: number of the step, from 0.
            batch_size: images of the global batch.
            start: first of the images.
            size: number of images; None is all from `start` on.
        """
        size = batch_size - start if size is None else size
        seeds = image_seeds(image_seed(self.seed, step), range(start, start + size))
        words, dropout_seed = seed_words(seeds), int(seeds[0])
        part = step, batch_size, start, size
        if self.resident:
            indices, flips = self._choice(part)
            # One copy, of pinned memory: nothing waits for it.
            rows = [indices[None], *([] if flips is None else [flips[None].long()]), words]
            sent = self._send(torch.cat(rows))
            images, labels = self.dataset.batch(sent[0], None if flips is None else sent[1].bool())
            return Batch(images, labels, sent[-2:], dropout_seed)
        images, labels = self._read_ahead(part)
        labels = None if labels is None else self._send(labels)
        return Batch(self._send(images), labels, self._send(words), dropout_seed)

    def _choice(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """The images of a part, by their positions in the dataset, and those that are mirrored."""
        step, batch_size, start, size = part
        mine = slice(start, start + size)
        indices = batch_indices(step, batch_size, len(self.dataset), self.seed)[mine]
        return indices, batch_flips(step, batch_size, self.seed)[mine] if self.flip else None

    def _read(self, part: Part) -> _Read:
        return self.dataset.batch(*self._choice(part))

    def _read_ahead(self, part: Part) -> _Read:
        """Reads a part, and begins with that of the next step; to the device it goes from the stream that trains."""
        if self._reader is None:
            return self._read(part)
        found = self._ahead[1].result() if self._ahead and self._ahead[0] == part else self._read(part)
        following = (part[0] + 1, *part[1:])
        self._ahead = following, self._reader.submit(self._read, following)
        return found

    def _send(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _fits(dataset: ImageDataset, device: torch.device) -> bool:
    return dataset.images.numel() <= _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
