"""The user's cache."""

import os
from pathlib import Path

from unistep.checks import user_path


def cache_root() -> Path:
    """Returns the folder of all that unistep keeps for the user and can get again."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else user_path("~/.cache")) / "unistep"
