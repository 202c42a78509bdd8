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
        self.device, self.seed, self.flip, self.use_labels = device, seed, flip, use_labels
        self.resident = device.type == "cuda" and _fits(dataset, device)
        labels = None if dataset.labels is None or not use_labels else dataset.labels
        if self.resident:
            labels = None if labels is None else labels.to(device)
            dataset = replace(dataset, images=dataset.images.to(device), labels=labels)
        self.dataset = dataset
        self._ahead: tuple[tuple[int, int, int, int], Future[Batch]] | None = None
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
        if self._reader is None:
            return self._make(step, batch_size, start, size)
        wanted = (step, batch_size, start, size)
        found = self._ahead[1].result() if self._ahead and self._ahead[0] == wanted else self._make(*wanted)
        following = (step + 1, batch_size, start, size)
        self._ahead = following, self._reader.submit(self._make, *following)
        return found

    def _make(self, step: int, batch_size: int, start: int, size: int) -> Batch:
        mine = slice(start, start + size)
        indices = batch_indices(step, batch_size, len(self.dataset), self.seed)[mine]
        flips = batch_flips(step, batch_size, self.seed)[mine] if self.flip else None
        seeds = image_seeds(image_seed(self.seed, step), range(start, start + size))
        dropout_seed = int(seeds[0])
        words = seed_words(seeds)
        if self.device.type != "cuda":
            images, labels = self.dataset.batch(indices, flips)
            labels = labels.to(self.device) if self.use_labels and labels is not None else None
            return Batch(images.to(self.device), labels, words.to(self.device), dropout_seed)
        if not self.resident:
            images, labels = self.dataset.batch(indices, flips)
            labels = None if labels is None or not self.use_labels else self._send(labels)
            return Batch(self._send(images), labels, self._send(words), dropout_seed)
        # One copy, of pinned memory: nothing waits for it.
        rows = [indices[None], *([] if flips is None else [flips[None].long()]), words]
        sent = self._send(torch.cat(rows))
        images, labels = self.dataset.batch(sent[0], None if flips is None else sent[1].bool())
        return Batch(images, labels, sent[-2:], dropout_seed)

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _fits(dataset: ImageDataset, device: torch.device) -> bool:
    return dataset.images.numel() <= _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
