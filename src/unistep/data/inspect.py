"""Look through a source of images before training on it: what is there, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unistep.data.encoded import EncodedReader
from unistep.data.files import full_name
from unistep.data.npz import NpzReader
from unistep.data.open import open_reader
from unistep.data.parallel import ordered_map
from unistep.data.prepare import decode, read_header
from unistep.data.reader import BadImage, Labels
from unistep.errors import UserError
from unistep.text import shown

Histogram = Int64[np.ndarray, "channels 256"]

_ROWS_SHOWN = 10


@dataclass(frozen=True)
class DatasetReport:
    """What a source of images holds. Counts are of readable images, except those of `classes`."""

    source: str
    """The source, as the user wrote it."""

    num_images: int
    """Images that can be read."""

    num_bytes: int
    """Bytes on disk: of the image files, packed or not, or of the `.npz`."""

    sizes: dict[str, int]
    """Images of each size, `WIDTHxHEIGHT` when upright, the most frequent first."""

    modes: dict[str, int]
    """Images of each of Pillow's modes (`RGB`, `RGBA`, `L`, `P`, `I;16`, ...), the most frequent first."""

    channels: int
    """1 if all images are grey, else 3: what `open_dataset` makes of them."""

    mean: tuple[float, ...]
    """Mean of each channel over all pixels of all images, in [0, 1]; transparent pixels count as white."""

    std: tuple[float, ...]
    """Standard deviation of each channel, in [0, 1]."""

    classes: dict[str, int] | None
    """Images of each class, in the order of the labels; None without labels."""

    label_error: str | None
    """Why the labels cannot be used, if they cannot."""

    bad: tuple[tuple[str, str], ...]
    """Name of each file that cannot be read, and the reason."""

    def render(self) -> RenderableType:
        """The report for a rich console."""
        table = Table(title=Text(shown(self.source)), show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column()
        table.add_row("images", f"{self.num_images:,} readable, {len(self.bad):,} not")
        table.add_row("bytes", f"{self.num_bytes:,}")
        table.add_row("sizes", _counts(self.sizes))
        table.add_row("modes", _counts(self.modes))
        table.add_row("channels", f"{self.channels} ({'grey' if self.channels == 1 else 'colour'})")
        table.add_row("mean", ", ".join(f"{value:.5f}" for value in self.mean) or "-")
        table.add_row("std", ", ".join(f"{value:.5f}" for value in self.std) or "-")
        if self.classes is not None:
            table.add_row(f"{len(self.classes):,} classes", _counts(self.classes))
        else:
            table.add_row("classes", "none" if self.label_error is None else Text(f"unusable: {self.label_error}"))
        notes: list[RenderableType] = []
        if len(self.sizes) > 1:
            notes.append(Text("The sizes differ: training needs --data.resolution N."))
        if self.bad:
            notes.append(Text("Unreadable (left out with --data.skip_bad true):"))
            notes.extend(Text(f"  {name}: {reason}") for name, reason in self.bad[:_ROWS_SHOWN])
            if len(self.bad) > _ROWS_SHOWN:
                notes.append(Text(f"  and {len(self.bad) - _ROWS_SHOWN:,} more"))
        return Group(table, *notes)


def inspect(source: str) -> DatasetReport:
    """Read every image of a source at its own size and sum up what is there.

    Unlike `open_dataset` it takes images of any sizes, lists bad files, and reports unusable labels without stopping.

    Args:
        source: as `DataConfig.source`.

    Raises:
        UserError: if the source is not there, is of no known kind or has no images.
    """
    reader = open_reader(source)
    label_error: str | None = None
    labels: Labels | None = None
    try:
        labels = reader.labels()
    except UserError as error:
        label_error = str(error)
    classes = None if labels is None else _class_counts(labels)
    if isinstance(reader, NpzReader):
        return _inspect_npz(source, reader, classes, label_error)
    return _inspect_files(source, reader, classes, label_error)


def _inspect_files(
    source: str, reader: EncodedReader, classes: dict[str, int] | None, label_error: str | None
) -> DatasetReport:
    def look(index: int) -> tuple[str, str, bool, Histogram] | BadImage:
        try:
            content = reader.files.read(index)
            image = decode(content)
            size = f"{image.width}x{image.height}"
            histogram = np.array(image.convert("RGB").histogram(), np.int64).reshape(3, 256)
            return size, read_header(content).mode, image.mode == "L", histogram
        except BadImage as error:
            return error

    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    total = np.zeros((3, 256), np.int64)
    all_grey = True
    for index, found in enumerate(ordered_map(look, len(reader), "inspecting")):
        if isinstance(found, BadImage):
            bad.append((full_name(reader.files, index), str(found)))
            continue
        size, mode, grey, histogram = found
        sizes[size] += 1
        modes[mode] += 1
        all_grey = all_grey and grey
        total += histogram
    channels = 1 if all_grey else 3
    mean, std = _moments(total[:channels])
    return DatasetReport(
        source=source,
        num_images=sizes.total(),
        num_bytes=sum(reader.files.sizes),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        channels=channels,
        mean=mean,
        std=std,
        classes=classes,
        label_error=label_error,
        bad=tuple(bad),
    )


def _inspect_npz(
    source: str, reader: NpzReader, classes: dict[str, int] | None, label_error: str | None
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


def _counts(counts: dict[str, int]) -> Text:
    parts = [f"{shown(name)}: {count:,}" for name, count in list(counts.items())[:_ROWS_SHOWN]]
    if len(counts) > _ROWS_SHOWN:
        parts.append(f"and {len(counts) - _ROWS_SHOWN:,} more")
    return Text("\n".join(parts) or "-")
