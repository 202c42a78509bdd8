"""Images from encoded files (PNG, JPEG, ...) of a folder or a `.zip`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import PurePosixPath

from unistep.data.files import ImageFiles, full_name, passed_over_line
from unistep.data.frames import further_frames
from unistep.data.grey import GreyRange
from unistep.data.inventory import passed_over
from unistep.data.labels import read_labels
from unistep.data.names import brief
from unistep.data.parallel import ordered_map
from unistep.data.png import SIGNATURE
from unistep.data.prepare import Header, decode, fit, large, read_header, to_pixels, wide_range
from unistep.data.reader import BadImage, Labels, Pixels, Shape, Skipped
from unistep.errors import UserError
from unistep.text import shown

_HEADER_BYTES = 64 << 10
_LARGE_BYTES = 32 << 20

MAYBE_WIDE = frozenset((".png", ".tif", ".tiff", ".pgm", ".pnm", ".jp2", ".j2k"))
"""Endings of the files that may be of 16 bits."""

WIDE_PNG = b"\x10"
"""Byte 24 of a PNG of 16 bits."""


class EncodedReader:
    """The images of a folder or archive.

    Args:
        files: image files of the source.

    Raises:
        UserError: the source holds none.
    """

    def __init__(self, files: ImageFiles) -> None:
        self.location = files.location
        self.files = files
        self.remarks: list[str] = []
        self.faults: list[tuple[str, str]] = []
        """Archive, and reason why the rest of it cannot be read, of each that is damaged."""
        if not len(files.names):
            but = f" ({passed_over(files.passed)} passed over)" if files.passed else ""
            raise UserError(
                f"{shown(files.location)}: no images are in it{but}; PNG, JPEG, WebP and the like are looked for"
            )

    def __len__(self) -> int:
        return len(self.files.names)

    def labels(self) -> Labels | None:
        return read_labels(self.files)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def passed_over(self) -> str:
        return passed_over_line(self.files)

    def shape(self, resolution: int | None, channels: int | None, skip_bad: bool) -> Shape:
        self._check_whole(skip_bad)
        if resolution is not None and channels is not None:
            return channels, resolution, resolution
        first: tuple[int, Header] | None = None
        all_grey = True
        header_of = self._header if resolution is not None else self._upright_header
        for index, header in enumerate(ordered_map(header_of, len(self), "reading sizes")):
            if isinstance(header, BadImage):
                if not skip_bad:
                    raise self._unreadable(index, header)
                continue
            all_grey = all_grey and header.grey
            if first is None:
                first = index, header
            elif resolution is None and (header.width, header.height) != (first[1].width, first[1].height):
                raise UserError(
                    f"{full_name(self.files, first[0])} is {first[1].width}x{first[1].height}, but"
                    f" {full_name(self.files, index)} is {header.width}x{header.height}; bring them to one size with"
                    " `resolution`"
                )
        if first is None:
            raise UserError(f"{shown(self.location)}: none of its {len(self)} images can be read")
        return (
            channels or (1 if all_grey else 3),
            resolution or first[1].height,
            resolution or first[1].width,
        )

    @cached_property
    def grey_bits(self) -> int:
        """Number of bits that count in the images of 16 bits of the whole source; see `unistep.data.grey`."""
        maybe = [i for i, name in enumerate(self.files.names) if PurePosixPath(name).suffix.lower() in MAYBE_WIDE]
        is_wide = ordered_map(lambda i: self._is_wide(maybe[i]), len(maybe), "looking for 16 bits")
        wide = [index for index, found in zip(maybe, is_wide, strict=True) if found]
        found = GreyRange()
        for one in ordered_map(lambda i: self._range(wide[i]), len(wide), "reading the range of 16 bits"):
            found |= one
            if found.decided:
                break
        if wide and found.bits < 16:
            self.remarks.append(
                f"{shown(self.location)}: its images of 16 bits hold values up to {found.highest:,}, and are read"
                f" as {found.bits} bits: {(1 << found.bits) - 1:,} is white"
            )
        return found.bits

    def blocks(self, shape: Shape, resolution: int | None, skipped: list[Skipped] | None) -> Iterator[Pixels]:
        bits = self.grey_bits

        def prepare(index: int) -> tuple[Pixels, bool, int] | BadImage:
            try:
                with self.turn(index):
                    content = self.files.read(index)
                    image = decode(content, side=resolution, bits=bits)
                    enlarged = resolution is not None and min(image.size) < resolution
                    return to_pixels(fit(image, resolution), shape[0]), enlarged, further_frames(content)
            except BadImage as error:
                return error

        num_enlarged = num_further = num_of = 0
        item_bytes = shape[0] * shape[1] * shape[2]
        for index, result in enumerate(ordered_map(prepare, len(self), "reading images", item_bytes)):
            if isinstance(result, BadImage):
                if skipped is None:
                    raise self._unreadable(index, result)
                skipped.append(Skipped(index, f"{full_name(self.files, index)}: {result}"))
                continue
            pixels, enlarged, further = result
            num_enlarged += enlarged
            num_further += further
            num_of += bool(further)
            if pixels.shape != shape:
                raise UserError(
                    f"{full_name(self.files, index)} is {pixels.shape[2]}x{pixels.shape[1]} when decoded, but the other"
                    f" images are {shape[2]}x{shape[1]}; bring them to one size with `resolution`"
                )
            yield pixels[None]
        if num_enlarged:
            self.remarks.append(
                f"{shown(self.location)}: {num_enlarged} of {len(self)} images are smaller than {resolution} pixels and"
                " were enlarged"
            )
        if num_further:
            self.remarks.append(further_line(self.location, num_further, num_of))

    def turn(self, index: int) -> AbstractContextManager[object]:
        """Returns a context in which a file is read and decoded: threads take their turns at large ones."""
        return large if self.files.sizes[index] > _LARGE_BYTES else nullcontext()

    def _header(self, index: int) -> Header | BadImage:
        return self._read_header(index, False)

    def _upright_header(self, index: int) -> Header | BadImage:
        return self._read_header(index, True)

    def _read_header(self, index: int, upright: bool) -> Header | BadImage:
        """The header of a file.

        Args:
            index: position of the file.
            upright: whether the size has to be that of the upright image.
        """
        try:
            start = self.files.read(index, _HEADER_BYTES)
            is_whole = len(start) < _HEADER_BYTES
            try:
                header = read_header(start)
                # The orientation may stand after the pixels of a PNG.
                may_turn = upright and header.width != header.height and start.startswith(SIGNATURE)
                if is_whole or not may_turn:
                    return header
            except BadImage:
                # Some formats keep their header at the end or cannot be opened in part.
                if is_whole:
                    raise
            with self.turn(index):
                return read_header(self.files.read(index))
        except BadImage as error:
            return error

    def _is_wide(self, index: int) -> bool:
        try:
            start = self.files.read(index, 64)
        except BadImage:
            return False
        if start.startswith(SIGNATURE):
            return start[24:25] == WIDE_PNG
        header = self._header(index)
        return isinstance(header, Header) and header.wide

    def _range(self, index: int) -> GreyRange:
        try:
            with self.turn(index):
                return wide_range(self.files.read(index)) or GreyRange()
        except BadImage:  # told where the image is read
            return GreyRange()

    def _check_whole(self, skip_bad: bool) -> None:
        """Refuses archives that are damaged, or tells what of them is left out."""
        for name, reason in self.faults:
            line = f"{shown(PurePosixPath(self.location, brief(name)))} is damaged: {reason}"
            if not skip_bad:
                raise UserError(f"{line}; fetch it again, or leave out the rest of it with `skip_bad=True`")
            if (remark := f"{line}; the rest of it was left out") not in self.remarks:
                self.remarks.append(remark)

    def _unreadable(self, index: int, error: BadImage) -> UserError:
        return UserError(
            f"{full_name(self.files, index)}: it cannot be read as an image ({error}); repair or remove it, or leave"
            " out such files with `skip_bad=True`"
        )


def further_line(location: str, num_further: int, num_of: int) -> str:
    """The count of pages and frames that are passed over, in words.

    Args:
        location: source as the user wrote it.
        num_further: number of pages and frames after the first ones.
        num_of: number of the files that have them.
    """
    verb, files = "was" if num_further == 1 else "were", f"{num_of:,} file{'s' * (num_of != 1)}"
    what = f"{num_further:,} further page{'s' * (num_further != 1)} or frame{'s' * (num_further != 1)}"
    return f"{shown(location)}: {what} of {files} {verb} passed over; the first of each file is its image"
