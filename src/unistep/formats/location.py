"""The place that a model's name leads to, as far as it can be examined without opening the model."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.torch_file import open_zip

_HEAD_BYTES = 512
# The number that a file of torch.save began with before torch 1.6, as the pickle has it; newer ones are zip files.
_OLD_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


@dataclass(frozen=True)
class Location:
    """A name and the file or folder of that name.

    Args:
        name: name as the user gave it.
        path: the name as a path.
        exists: true if there is a file or folder.
        is_folder: true if there is a folder.
        head: first 512 bytes of a file; empty for everything else.
    """

    name: str
    path: Path
    exists: bool = False
    is_folder: bool = False
    head: bytes = b""

    @property
    def is_file(self) -> bool:
        """True if there is a file."""
        return self.exists and not self.is_folder

    @property
    def is_torch_file(self) -> bool:
        """True if there is a file of `torch.save`, other than a TorchScript program."""
        if self.zip_members is not None:
            return "data.pkl" in self.zip_members and "constants.pkl" not in self.zip_members
        return self.head.startswith(b"\x80") and _OLD_TORCH in self.head[:40]

    @property
    def is_safetensors(self) -> bool:
        """True if there is a safetensors file: the length of a JSON object, and that object."""
        if not self.is_file or self.head[8:9] != b"{":
            return False
        return 0 < int.from_bytes(self.head[:8], "little") < self.path.stat().st_size

    @cached_property
    def zip_members(self) -> frozenset[str] | None:
        """Names of a zip file's members without their folders; None if it is damaged, or no zip file."""
        if not self.head.startswith(b"PK") or self.is_safetensors:  # whose length may be of any bytes
            return None
        try:
            with open_zip(self.path) as file:
                return frozenset(entry.rpartition("/")[2] for entry in file.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return None


def locate(name: str | Path, remedy: str) -> Location:
    """Examines the place that a name leads to.

    Args:
        name: path, or another name of a model.
        remedy: remedy for something that is neither file nor folder, the end of a message.

    Raises:
        UserError: the place cannot be looked at, or holds something that is neither file nor folder.
    """
    path = Path(name)
    try:
        exists = path.exists()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None
    if not exists or path.is_dir():
        return Location(str(name), path, exists, is_folder=exists)
    check_regular_file(path, remedy, what=None)
    with path.open("rb") as file:
        return Location(str(name), path, exists, head=file.read(_HEAD_BYTES))
