"""Where a command writes, looked at before any work is done."""

import os
from pathlib import Path

from unistep.errors import UserError


def check_output(name: str) -> Path:
    """The place of images: a .png, an .npz or a folder, whose name holds no dot unless it is there or ends in a slash.

    Raises:
        UserError: it is nothing of these, or cannot be written to.
    """
    path, suffix = Path(name), Path(name).suffix
    if not name.strip():
        raise UserError("--output is empty; give a .png, an .npz or a folder")
    if suffix.lower() in (".png", ".npz"):
        if path.is_dir():
            raise UserError(f"--output {name} is a folder; give another name")
    elif os.path.lexists(path) and not path.is_dir():
        raise UserError(f"--output {name} is a file; give a .png, an .npz or a folder")
    elif suffix and not path.is_dir() and not name.endswith("/"):
        raise UserError(f"--output {name}: cannot write {suffix}; give a .png, an .npz or a folder, as {name}/")
    check_place(path)
    return path


def check_place(path: Path) -> None:
    """Refuses a name at which no file or folder can be made.

    Raises:
        UserError: what is above `path` is not a folder, or there is no permission to write.
    """
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        reason = f"{above} is not a folder"
    elif not os.access(path if path.is_dir() else above, os.W_OK | os.X_OK):
        reason = f"there is no permission to write in {path if path.is_dir() else above}"
    elif path.exists() and not os.access(path, os.W_OK):
        reason = "there is no permission to write"
    else:
        return
    raise UserError(f"cannot write {path}: {reason}; choose another --output")
