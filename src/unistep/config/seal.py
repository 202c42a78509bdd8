"""The digest in a run's config.yaml, which tells whether its settings are those that were written."""

import hashlib
import re
from pathlib import Path

from unistep.config.recipes import CONFIG
from unistep.errors import UserError

_SEAL = "# sha256 of the lines that are no comments: "


def sealed(text: str) -> str:
    """The text of a config with the digest of its lines in front, which a cut at the end cannot take along."""
    return f"{_SEAL}{_digest(text)}\n{text}"


def check_config(folder: Path) -> None:
    """Passes where the settings in a run's config.yaml are those that were written; former versions do not say.

    Args:
        folder: folder of the run.

    Raises:
        UserError: they are not.
    """
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})", "put a copy in its place") from None
    found = re.search(rf"^{re.escape(_SEAL)}([0-9a-f]{{64}})$", text, re.MULTILINE)
    if found is not None and found[1] != _digest(text):
        raise UserError(
            f"{path}: its settings are not those that were written: it is damaged, or was changed by hand",
            "undo that, and give changes beside `resume`; or remove its line with the sha256 to keep it as it is",
        )


def _digest(text: str) -> str:
    lines = (line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
