"""Images from encoded files (PNG, JPEG, ...) of a folder or a `.zip`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from unistep.data.files import ImageFiles, full_name
from unistep.data.labels import read_labels
from unistep.data.parallel import ordered_map
from unistep.data.prepare import Header, decode, fit, read_header, to_pixels
from unistep.data.reader import BadImage, Labels, Pixels, Shape, Skipped
from unistep.errors import UserError
from unistep.text import shown

_LOG = logging.getLogger(__name__)
_HEADER_BYTES = 64 << 10


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
        if not files.names:
            raise UserError(
                f"{shown(files.location)}: no images are in it; PNG, JPEG, WebP and the like are looked for"
            )

    def __len__(self) -> int:
        return len(self.files.names)

    def labels(self) -> Labels | None:
        return read_labels(self.files)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def shape(self, resolution: int | None, channels: int | None, skip_bad: bool) -> Shape:
        if resolution is not None and channels is not None:
            return channels, resolution, resolution
        first: tuple[int, Header] | None = None
        all_grey = True
        for index, header in enumerate(ordered_map(self._header, len(self), "reading sizes")):
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

    def blocks(self, shape: Shape, resolution: int | None, skipped: list[Skipped] | None) -> Iterator[Pixels]:
        def prepare(index: int) -> tuple[Pixels, bool] | BadImage:
            try:
                image = decode(self.files.read(index))
                enlarged = resolution is not None and min(image.size) < resolution
                return to_pixels(fit(image, resolution), shape[0]), enlarged
            except BadImage as error:
                return error

        num_enlarged = 0
        for index, result in enumerate(ordered_map(prepare, len(self), "reading images")):
            if isinstance(result, BadImage):
                if skipped is None:
                    raise self._unreadable(index, result)
                skipped.append(Skipped(index, f"{full_name(self.files, index)}: {result}"))
                continue
            pixels, enlarged = result
            num_enlarged += enlarged
            if pixels.shape != shape:
                raise UserError(
                    f"{full_name(self.files, index)} is {pixels.shape[2]}x{pixels.shape[1]} when decoded, but the other"
                    f" images are {shape[2]}x{shape[1]}; bring them to one size with `resolution`"
                )
            yield pixels[None]
        if num_enlarged:
            _LOG.warning(
                "%s: %d of %d images are smaller than %d pixels and were enlarged",
                shown(self.location),
                num_enlarged,
                len(self),
                resolution,
            )

    def _header(self, index: int) -> Header | BadImage:
        try:
            start = self.files.read(index, _HEADER_BYTES)
            try:
                return read_header(start)
            except BadImage:
                # Some formats keep their header at the end or cannot be opened in part.
                if len(start) < _HEADER_BYTES:
                    raise
                return read_header(self.files.read(index))
        except BadImage as error:
            return error

    def _unreadable(self, index: int, error: BadImage) -> UserError:
        return UserError(
            f"{full_name(self.files, index)}: it cannot be read as an image ({error}); repair or remove it, or leave"
            " out such files with `skip_bad=True`"
        )
