"""Trains on three processes whose second one may write no large file: parted_checkpoint.py FOLDER.

Writes to FOLDER/said-RANK what each process says at its end.
"""

import os
import resource
import sys
from pathlib import Path

from changing_processes import train
from several import several

from unistep.errors import UserError

LARGEST = 4096  # bytes, of a file of the second process


def limited(folder: Path) -> None:
    rank = os.environ["RANK"]
    if rank == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    try:
        train(folder, "ct", "fsdp", 5)
        said = "trained"
    except UserError as error:
        said = str(error)
    (folder / f"said-{rank}").write_text(said)


if __name__ == "__main__":
    several(3, limited, Path(sys.argv[1]))
