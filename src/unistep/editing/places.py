"""Names of the files that results are written to."""

from collections.abc import Sequence
from pathlib import Path

from unistep.checks import check_file, check_place
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


def check_images_place(field: str, place: Path, name: str) -> None:
    """Refuses a place of images that is neither a .png nor a folder.

    Args:
        field: name of the parameter.
        place: path.
        name: path as it was given.

    Raises:
        UserError: it has another ending, is a file, or cannot be written to.
    """
    if place.suffix.lower() == ".png":
        return check_file(field, place, (".png",))
    if place.is_file():
        raise UserError(f"{name} is a file", "give a .png or a folder", field=field)
    if place.suffix and not place.is_dir() and not name.endswith("/"):
        raise UserError(f"{name}: cannot write {place.suffix}", f"give a .png or a folder, as {name}/", field=field)
    return check_place(field, place)
