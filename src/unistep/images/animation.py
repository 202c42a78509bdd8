"""Animations: images as a GIF or an MP4; the file appears whole or not at all.

Small frames are enlarged by a whole factor, because players enlarge with blur. GIFs are written by Pillow,
with 256 greys or, for colours, a palette for every frame; MP4s are H.264 in yuv420p, which every player and browser
shows, by ffmpeg, which the extra `video` brings.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unistep.errors import UserError
from unistep.files import whole_file
from unistep.images.grid import to_pil

SUFFIXES = (".gif", ".mp4")


def save_animation(
    frames: UInt8[Tensor, "N C H W"], path: Path, *, fps: float = 12.0, min_width: int = 256, loop: bool = True
) -> Path:
    """Writes frames as a GIF or an MP4, by the ending of `path`.

    Args:
        frames: frames of 1 or 3 channels.
        path: a .gif or an .mp4.
        fps: frames a second; a GIF rounds the time of a frame to hundredths of a second.
        min_width: width in pixels to which frames are about enlarged, by a whole factor.
        loop: whether a GIF begins again at its end.

    Raises:
        UserError: the ending is another, there are no frames, the extra `video` is missing, or the place cannot be
            written to.
    """
    suffix = path.suffix.lower()
    check_animation(path)
    if not len(frames) or not 0 < fps <= 100:
        raise UserError(f"{len(frames)} frames at {fps:g} a second are no animation; give frames, and 0 < fps <= 100")
    factor = max(1, round(min_width / frames.shape[-1]))
    pictures = [_enlarged(to_pil(frame), factor) for frame in frames]
    try:
        with whole_file(path) as temporary:
            (_write_gif if suffix == ".gif" else _write_mp4)(pictures, temporary, fps, loop)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another `output`") from None
    return path


def check_animation(path: Path) -> None:
    """Refuses an animation that could not be written.

    Raises:
        UserError: the ending is neither .gif nor .mp4, or the extra `video` for an .mp4 is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: an animation ends in {' or '.join(SUFFIXES)}; name it so")
    if path.suffix.lower() == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(f"{path}: an .mp4 needs pip install 'unistep[video]'; or give a .gif") from None


def _enlarged(picture: Image.Image, factor: int) -> Image.Image:
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _write_gif(pictures: list[Image.Image], path: Path, fps: float, loop: bool) -> None:
    if pictures[0].mode == "RGB":
        pictures = [p.quantize(256, dither=Image.Dither.NONE) for p in pictures]
    durations = [max(20, round(100 / fps) * 10)] * len(pictures)
    forever = {"loop": 0} if loop else {}
    # Pillow 13 gives grey frames of other levels a wrong palette where it optimises them.
    how = {"optimize": False, "disposal": 1, "duration": durations, **forever}
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], **how)


def _write_mp4(pictures: list[Image.Image], path: Path, fps: float, loop: bool) -> None:
    import imageio_ffmpeg

    # yuv420p halves the colours' resolution, so sides must be even. `-f`: the temporary name does not end in .mp4.
    arrays = [np.asarray(p.convert("RGB")) for p in pictures]
    arrays = [np.pad(a, ((0, a.shape[0] % 2), (0, a.shape[1] % 2), (0, 0)), mode="edge") for a in arrays]
    height, width = arrays[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,  # pyright: ignore[reportArgumentType]  ffmpeg takes any number
        codec="libx264",
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-f", "mp4", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        for array in arrays:
            writer.send(np.ascontiguousarray(array))
    finally:
        writer.close()
