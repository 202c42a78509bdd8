"""The batch of a step, on the device that trains: images, classes and the words of the seeds of their noise.

Which images a step has, which of them are mirrored and what noise they get are pure functions of step and seed. They
go to the device in one copy. A dataset that fits lies there as uint8, so that a step moves no image; of a larger one
the next batch is read while the device works, and of shards that are streamed the next few are decoded.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.core.random import image_seed, image_seeds, seed_words
from unistep.data.dataset import ImageDataset
from unistep.data.decode_pool import Asked
from unistep.data.order import batch_flips, batch_indices
from unistep.data.streaming import StreamedImages

_RESIDENT_SHARE = 0.25
"""Share of an accelerator's free memory that a dataset may take."""

_NAMED = 5  # images that are named where a read hangs

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
        images, streamed = dataset.images, None
        dataset = dataset if use_labels else replace(dataset, labels=None)
        self.resident = False
        if isinstance(images, StreamedImages):
            streamed = images
        elif device.type == "cuda" and _fits(images, device):
            self.resident = True
            labels = None if dataset.labels is None else dataset.labels.to(device)
            dataset = replace(dataset, images=images.to(device), labels=labels)
        self.dataset, self._streamed = dataset, streamed
        self._asked: deque[tuple[Part, Asked, Tensor]] = deque()
        self._cut: list[tuple[int, int]] = []  # start and size of the parts of the last step
        self._seen: tuple[int, list[tuple[int, int]]] = 0, []
        self._ahead: tuple[Part, Future[_Read]] | None = None
        self._reading: Part | None = None
        alone = self.resident or streamed is not None
        self._reader = ThreadPoolExecutor(1) if device.type == "cuda" and not alone else None

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

    def waiting_for(self) -> str:
        """Shard and image that are being waited for, or positions and file of mapped ones; empty where none are."""
        if self._streamed is not None:
            return self._streamed.waiting_for()
        part = self._reading
        if part is None or not self.dataset.file:
            return ""
        indices = self._choice(part)[0].tolist()
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        return f"images {', '.join(map(str, indices[:_NAMED]))}{more} of {self.dataset.file}"

    def abandon(self) -> None:
        """Kills the processes that decode, without waiting for their end."""
        if self._streamed is not None:
            self._streamed.abandon()

    def _choice(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """The images of a part, by their positions in the dataset, and those that are mirrored."""
        step, batch_size, start, size = part
        mine = slice(start, start + size)
        indices = batch_indices(step, batch_size, len(self.dataset), self.seed)[mine]
        return indices, batch_flips(step, batch_size, self.seed)[mine] if self.flip else None

    def _read(self, part: Part) -> _Read:
        self._reading = part
        try:
            return self.dataset.batch(*self._choice(part))
        finally:
            self._reading = None

    def _read_ahead(self, part: Part) -> _Read:
        """Reads a part, and begins with that of the next step; to the device it goes from the stream that trains."""
        if self._streamed is not None:
            return self._decoded_ahead(part, self._streamed)
        if self._reader is None:
            return self._read(part)
        found = self._ahead[1].result() if self._ahead and self._ahead[0] == part else self._read(part)
        following = (part[0] + 1, *part[1:])
        self._ahead = following, self._reader.submit(self._read, following)
        return found

    def _decoded_ahead(self, part: Part, images: StreamedImages) -> _Read:
        """Takes a part that was asked for, and asks for those that follow if all steps are cut as the last one was."""
        if part[0] != self._seen[0]:
            self._cut, self._seen = self._seen[1], (part[0], [])
        self._seen[1].append(part[2:])
        if self._asked and self._asked[0][0] != part:
            while self._asked:
                images.drop(self._asked.popleft()[1])
        if not self._asked:
            self._ask(part, images)
        _, asked, indices = self._asked.popleft()
        last = self._asked[-1][0] if self._asked else part
        while len(self._asked) < images.ahead(part[3]):
            last = self._following(last)
            self._ask(last, images)
        labels = None if self.dataset.labels is None else torch.index_select(self.dataset.labels, 0, indices)
        return images.took(asked), labels

    def _ask(self, part: Part, images: StreamedImages) -> None:
        indices, flips = self._choice(part)
        self._asked.append((part, images.ask(indices, flips), indices))

    def _following(self, part: Part) -> Part:
        """The part after a part: the same images of the next step, or the next of those that the last step had."""
        step, batch_size, start, size = part
        place = self._cut.index((start, size)) + 1 if (start, size) in self._cut else 0
        if not place:
            return step + 1, batch_size, start, size
        following = self._cut[place % len(self._cut)]
        return step + (place == len(self._cut)), batch_size, *following

    def _send(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    return images.numel() <= _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
