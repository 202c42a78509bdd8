"""Names of the files that results are written to."""

from collections.abc import Sequence
from pathlib import Path

from unistep.errors import UserError


def ranked_places(best: Path, count: int) -> list[Path]:
    """Returns x.png, x-2.png, ... for a number of candidates."""
    return [best, *(best.with_name(f"{best.stem}-{i}.png") for i in range(2, count + 1))]


def output_places(names: Sequence[str], output: Path, field: str = "output") -> list[Path]:
    """Returns the path of the best result of every image.

    Args:
        names: names of the images.
        output: a .png, or a folder.
        field: name of the parameter, for messages.

    Raises:
        UserError: several images and one file, or two images of one name.
    """
    if output.suffix.lower() == ".png" and not output.is_dir():
        if len(names) > 1:
            raise UserError(f"{output} is one file for {len(names)} images", "give a folder", field=field)
        return [output]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two images would both become {output / twice}.png", "rename one")
    return [output / f"{name}.png" for name in names]
