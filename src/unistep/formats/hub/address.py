"""Models on the Hugging Face Hub: their names, and the address of a revision."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.formats.location import Location
from unistep.formats.table import FILE_SUFFIXES

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class HubAddress:
    """The address of a revision of a model; `hub_address` makes it and checks the parts.

    Args:
        model_id: `owner/name`.
        revision: branch, tag or commit.
        token: access token; None is the stored one if there is any, True the stored one, which must exist, False none.
        cache: folder of the Hub's cache.
        endpoint: URL of the Hub.
    """

    model_id: str
    revision: str
    token: str | bool | None
    cache: Path
    endpoint: str

    def __str__(self) -> str:
        return self.model_id if self.revision == "main" else f"{self.model_id} (revision {self.revision})"

    @property
    def host(self) -> str:
        """The host of the endpoint, without a password."""
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]


def is_hub_name(name: str) -> bool:
    """Returns whether a name has the form owner/name of a model on the hub, and not that of a file."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(FILE_SUFFIXES)


def is_hub_model(location: Location) -> bool:
    """Returns whether a name that leads to no file has the form of a model on the hub."""
    return not location.exists and is_hub_name(location.name)


def hub_address(
    model_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> HubAddress:
    """Makes an address. HF_ENDPOINT is read now, while `huggingface_hub` reads it when it is imported.

    Args:
        model_id: `owner/name`.
        revision: branch, tag or commit; None is main.
        token: access token; None is the stored one if there is any, True the stored one, which must exist, False none.
        cache_dir: folder of the cache; None is the Hub's own.

    Raises:
        UserError: a part is malformed.
    """
    from huggingface_hub import constants

    # The library's own check lets more pass, and differs between its versions.
    names = model_id.split("/")
    if len(names) != 2 or not all(re.fullmatch(r"\w([\w.-]{0,94}\w)?", name, re.ASCII) for name in names):
        raise UserError(f"{model_id!r} is no model of the Hub; their names are like owner/name")
    if "--" in model_id or ".." in model_id or model_id.endswith(".git"):
        raise UserError(f"{model_id!r} is no model of the Hub; names have no -- or .. and do not end with .git")
    revision = "main" if revision is None else revision
    # What git allows in a name; it becomes part of a path in the cache.
    if not re.fullmatch(r"[^\s\x00-\x1f\\~^:?*\[/.-][^\s\x00-\x1f\\~^:?*\[]*", revision) or ".." in revision:
        raise UserError(f"{revision!r} is no name of a branch, tag or commit", field="revision")
    # Whoever sends a token with a line end quotes it in an error.
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise UserError("is empty or holds spaces or line ends", "give it as the Hub shows it", field="token")
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    with suppress(ValueError):  # of urlsplit and of its port
        url = urlsplit(endpoint)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            cache = user_path(cache_dir or constants.HF_HUB_CACHE)
            return HubAddress(model_id, revision, token, cache, endpoint)
    raise UserError("HF_ENDPOINT is no URL; it must be like https://huggingface.co")
