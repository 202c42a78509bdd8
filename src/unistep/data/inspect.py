"""A report on a source of images: counts, sizes and classes, and the faults that training would meet."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from unistep.data.encoded import EncodedReader
from unistep.data.files import full_name
from unistep.data.frames import further_frames
from unistep.data.inventory import passed_over
from unistep.data.open import open_reader
from unistep.data.parallel import ordered_map
from unistep.data.prepare import Header, decode, read_header
from unistep.data.raw import RawReader
from unistep.data.reader import BadImage, Labels
from unistep.errors import UserError
from unistep.text import html_table, shown

Histogram = Int64[np.ndarray, "channels 256"]

_ROWS_SHOWN = 10


@dataclass(frozen=True, repr=False)
class DatasetReport:
    """The content of a source of images. Counts are of readable images, except those of `classes`.

    Args:
        source: source as the user gave it.
        num_images: number of readable images.
        num_bytes: bytes on disk of the image files, packed or not, or of the .npz.
        sizes: number of images of each size, `WIDTHxHEIGHT` when upright, the most frequent first.
        modes: number of images of each of Pillow's modes (RGB, RGBA, L, P, I;16, ...), the most frequent first.
        channels: 1 if all images are grey, otherwise 3, as `open_dataset` reads them.
        mean: mean of each channel over all pixels of all images, in [0, 1]; transparent pixels count as white.
        std: standard deviation of each channel, in [0, 1].
        classes: number of images of each class, in the order of the labels; None without labels.
        label_error: reason why the labels cannot be used; None if they can, or if there are none.
        bad: name and reason of each file that cannot be read.
        passed: number of the files that are not read as images, by ending in lower case: "" is none, "special" a pipe
            or a device.
        further: number of pages and frames after the first of their file, which are not read.
        grey_bits: number of bits that count in images of 16 bits; None if there are none.
    """

    source: str
    num_images: int
    num_bytes: int
    sizes: dict[str, int]
    modes: dict[str, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: dict[str, int] | None
    label_error: str | None
    bad: tuple[tuple[str, str], ...]
    passed: dict[str, int] = field(default_factory=dict)
    further: int = 0
    grey_bits: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std), "bad": [list(item) for item in self.bad]}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and value of each line of a table."""
        rows = [
            ("images", f"{self.num_images:,} readable, {len(self.bad):,} not"),
            *([("passed over", passed_over(self.passed))] if self.passed else []),
            *([("passed over", f"{self.further:,} further pages or frames")] if self.further else []),
            ("bytes", f"{self.num_bytes:,}"),
            ("sizes", _counts(self.sizes)),
            ("modes", _counts(self.modes)),
            *([] if self.grey_bits is None else [("16-bit values", f"{self.grey_bits} bits of it are used")]),
            ("channels", f"{self.channels} ({'grey' if self.channels == 1 else 'colour'})"),
            ("mean", ", ".join(f"{value:.5f}" for value in self.mean) or "-"),
            ("std", ", ".join(f"{value:.5f}" for value in self.std) or "-"),
        ]
        if self.classes is not None:
            return [*rows, (f"{len(self.classes):,} classes", _counts(self.classes))]
        return [*rows, ("classes", "none" if self.label_error is None else f"unusable: {self.label_error}")]

    def remarks(self) -> list[str]:
        """Returns the obstacles to reading the images as a dataset, a line each."""
        lines: list[str] = []
        if len(self.sizes) > 1:
            lines.append("The sizes differ: a dataset of them needs a `resolution`.")
        if self.bad:
            lines.append("Unreadable (left out with `skip_bad`):")
            lines += [f"  {name}: {reason}" for name, reason in self.bad[:_ROWS_SHOWN]]
            if len(self.bad) > _ROWS_SHOWN:
                lines.append(f"  and {len(self.bad) - _ROWS_SHOWN:,} more")
        return lines

    def __repr__(self) -> str:
        sizes = next(iter(self.sizes), "no size") if len(self.sizes) < 2 else f"{len(self.sizes)} sizes"
        return (
            f"DatasetReport({shown(self.source)}: {self.num_images:,} images of {sizes}, {len(self.bad):,} unreadable)"
        )

    def _repr_html_(self) -> str:
        return html_table(shown(self.source), [*self.rows(), *(("note", line) for line in self.remarks())])


def inspect_source(source: str) -> DatasetReport:
    """Reads every image of a source at its own size and counts images, sizes, modes and classes.

    Unlike `open_dataset` it takes images of any sizes, lists bad files, and reports unusable labels without stopping.

    Args:
        source: folder, .zip or .npz, or the name of a bundled dataset.

    Raises:
        UserError: the source is not there, is of no known kind, or has no images.
    """
    reader = open_reader(source)
    label_error: str | None = None
    labels: Labels | None = None
    try:
        labels = reader.labels()
    except UserError as error:
        label_error = str(error)
    classes = None if labels is None else _class_counts(labels)
    if isinstance(reader, RawReader):
        return _inspect_raw(source, reader, classes, label_error)
    return _inspect_files(source, reader, classes, label_error)


def _inspect_files(
    source: str, reader: EncodedReader, classes: dict[str, int] | None, label_error: str | None
) -> DatasetReport:
    bits = reader.grey_bits

    def look(index: int) -> tuple[str, Header, bool, Histogram, int] | BadImage:
        try:
            with reader.turn(index):
                content = reader.files.read(index)
                image = decode(content, bits=bits)
                size = f"{image.width}x{image.height}"
                histogram = np.array(image.convert("RGB").histogram(), np.int64).reshape(3, 256)
                return size, read_header(content), image.mode == "L", histogram, further_frames(content)
        except BadImage as error:
            return error

    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    bad: list[tuple[str, str]] = [(shown(f"{source}/{name}"), reason) for name, reason in reader.faults]
    total = np.zeros((3, 256), np.int64)
    all_grey, any_wide, num_further = True, False, 0
    for index, found in enumerate(ordered_map(look, len(reader), "inspecting")):
        if isinstance(found, BadImage):
            bad.append((full_name(reader.files, index), str(found)))
            continue
        size, header, grey, histogram, further = found
        sizes[size] += 1
        modes[header.mode] += 1
        all_grey, any_wide = all_grey and grey, any_wide or header.wide
        num_further += further
        total += histogram
    channels = 1 if all_grey else 3
    mean, std = _moments(total[:channels])
    return DatasetReport(
        source=source,
        num_images=sizes.total(),
        num_bytes=int(sum(reader.files.sizes)),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        channels=channels,
        mean=mean,
        std=std,
        classes=classes,
        label_error=label_error,
        bad=tuple(bad),
        passed=dict(reader.files.passed),
        further=num_further,
        grey_bits=bits if any_wide or bits < 16 else None,
    )


def _inspect_raw(
    source: str, reader: RawReader, classes: dict[str, int] | None, label_error: str | None
) -> DatasetReport:
    shape = reader.shape(None, None, skip_bad=False)
    total = np.zeros((shape[0], 256), np.int64)
    for block in reader.blocks(shape, None, None):
        for channel in range(shape[0]):
            total[channel] += np.bincount(block[:, channel].reshape(-1), minlength=256)
    mean, std = _moments(total)
    width, height = reader.size
    return DatasetReport(
        source=source,
        num_images=len(reader),
        num_bytes=reader.num_bytes,
        sizes={f"{width}x{height}": len(reader)},
        modes={reader.mode: len(reader)},
        channels=shape[0],
        mean=mean,
        std=std,
        classes=classes,
        label_error=label_error,
        bad=(),
    )


def _class_counts(labels: Labels) -> dict[str, int]:
    counts = np.bincount(labels.values, minlength=0 if labels.names is None else len(labels.names))
    names = labels.names or [str(label) for label in range(len(counts))]
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _moments(histogram: Histogram) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1]; none if there are no pixels."""
    pixels = histogram.sum(1)
    if not pixels.all():
        return (), ()
    values = np.arange(256) / 255
    mean = histogram @ values / pixels
    variance = (histogram * (values - mean[:, None]) ** 2).sum(1) / pixels
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def _counts(counts: dict[str, int]) -> str:
    parts = [f"{shown(name)}: {count:,}" for name, count in list(counts.items())[:_ROWS_SHOWN]]
    if len(counts) > _ROWS_SHOWN:
        parts.append(f"and {len(counts) - _ROWS_SHOWN:,} more")
    return "\n".join(parts) or "-"
