"""Names of classes in a run: those of the data, kept with its models and held to when it goes on."""

import logging
from pathlib import Path

from unistep.data import ImageDataset
from unistep.data.classes import are_numbers
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.schedule import read_info
from unistep.text import shown

_log = logging.getLogger("unistep")

_MOST_BYTES = 400_000  # of the file that holds them, which has at most a million


def kept_names(dataset: ImageDataset) -> tuple[str, ...]:
    """Names of a dataset's classes, for its models; none where they are but the numbers, or too long to be kept.

    Args:
        dataset: dataset with labels.
    """
    names = dataset.class_names or []
    if are_numbers(names):
        return ()
    if (size := sum(6 + len(name.encode("utf-8", "backslashreplace")) for name in names)) > _MOST_BYTES:
        _log.warning("the names of %s classes take %s bytes and are not kept", f"{len(names):,}", f"{size:,}")
        return ()
    return tuple(shown(name) for name in names)


def check_same_classes(outline: Path, info: ModelInfo) -> None:
    """Refuses to go on with a stage whose classes had other names when it began.

    Args:
        outline: outline of the stage's model.
        info: noise range and kind of the model, with the names of the data's classes now.

    Raises:
        UserError: the names differ, so that a number may mean another class.
    """
    file = outline / "scheduler" / "scheduler_config.json"
    try:
        before = read_info(file, diffusers_network=False).class_names if file.is_file() else ()
    except UserError:  # damaged; it is written anew when the stage goes on
        return
    if not before or before == info.class_names:
        return
    now = info.class_names
    differing = [number for number, name in enumerate(before) if number >= len(now) or name != now[number]]
    number = differing[0] if differing else len(before)
    was, is_now = (shown(names[number]) if number < len(names) else "none" for names in (before, now))
    raise UserError(
        f"the classes of the data have changed since the run began: class {number} was {was} and is {is_now}; restore"
        " the data, or choose another `output`"
    )
