"""Opens a model of any format, which is recognised by the content of the file and not by its name.

Nothing that a file contains is executed.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.errors import UserError
from unistep.formats.embedded import embedded_model
from unistep.formats.hub.address import is_hub_name
from unistep.formats.location import Location, locate
from unistep.formats.table import DOWNLOAD_OPTIONS, FILE_SUFFIXES, FORMATS, Format, phrases, recognise
from unistep.formats.unknown import refusal

if TYPE_CHECKING:
    import torch

    from unistep.formats.model import LoadedModel


def open_model(name: str | os.PathLike[str], device: "torch.device | str" = "cpu", **options: Any) -> "LoadedModel":
    """Opens a model of any row of `FORMATS`.

    Args:
        name: path, name of an embedded model, or owner/name on the hub; a path that exists has precedence.
        device: device of the model; "meta" opens it without the values of its weights.
        options: options of the rows, which are those of `unistep.load`; None is an option that is not given.

    Raises:
        UserError: there is no such model, it is damaged or of an unknown kind, or an option does not apply to it.
    """
    embedded = embedded_model(name)
    location = locate(os.fspath(embedded.folder if embedded else name), phrases())
    row = recognise(location)
    if row is None:
        raise refusal(location)
    given = {option: value for option, value in options.items() if value is not None}
    _check_options(row, location, given)
    taken = {option: value for option, value in given.items() if option in row.options}
    model = row.opener()(location.path if location.exists else location.name, device, **taken)
    if note := _without_effect(row, location, given):
        model = dataclasses.replace(model, notes=(*model.notes, note))
    if given.get("kind", model.info.kind) != model.info.kind:
        raise UserError(f"`kind` {given['kind']}: {name} is a {model.info.kind} model; leave it out")
    return model


def names_a_model(name: str) -> bool:
    """Returns whether a name means a model rather than images: by the file or folder of that name, or by its form.

    A name of an embedded model means that model, unless there is a file or folder of that name.
    """
    if embedded_model(name):
        return True
    path = Path(name)
    if path.is_dir():
        return recognise(locate(path, phrases())) is not None
    if path.suffix.lower() in FILE_SUFFIXES:
        return True
    return not path.exists() and is_hub_name(name) and not path.parent.is_dir()


def _without_effect(row: Format, location: Location, given: dict[str, Any]) -> str:
    """The note on options of a download beside a model that is here; empty where there are none."""
    idle = [option for option in DOWNLOAD_OPTIONS if given.get(option) and option not in row.options]
    # A model that is here is what `local_files_only` asks for.
    idle = [f"`{option}`" for option in idle if option != "local_files_only"]
    if not idle:
        return ""
    verb = "has no effect" if len(idle) == 1 else "have no effect"
    return f"{' and '.join(idle)} {verb}: {location.name} is here, and nothing is downloaded"


def _check_options(row: Format, location: Location, given: dict[str, Any]) -> None:
    """Refuses options that the model's format has no use for."""
    known = {option for each in FORMATS for option in each.options}
    for option, value in given.items():
        if option not in known:
            raise TypeError(f"no format has an option {option!r}")
        if option in row.options or option in DOWNLOAD_OPTIONS or option == "kind":
            continue
        those = " or ".join(each.phrase for each in FORMATS if option in each.options)
        raise UserError(f"`{option}` {value} is for {those}, and {location.name} is none; leave it out")
