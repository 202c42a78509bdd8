"""`unistep.runs`: the runs below a folder, and how far they are."""

import os
from typing import TYPE_CHECKING

from unistep.arguments import plain_arguments
from unistep.checks import check_path, user_path

if TYPE_CHECKING:
    from unistep.watching.listing import RunListing


@plain_arguments()
def runs(folder: str | os.PathLike[str] = "runs") -> "RunListing":
    """Lists the runs below a folder: state, stage, step, speed, distances and last change of each.

    A run is running while a process holds its lock, finished when all its stages have ended, else interrupted. The
    distances are those of evaluations during training. Nothing is written, and no model is opened; a folder that is
    damaged, or no run, has a row with the reason.

    Args:
        folder: folder that holds runs, at any depth, or a run; default: runs.

    Returns:
        The runs, those that changed last first, which a notebook shows as a table.

    Raises:
        UserError: there is no such folder.

    Example:
        >>> import tempfile, unistep
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     unistep.runs(folder)
        RunListing(...: no runs)
    """
    check_path("folder", folder)
    from unistep.watching.listing import list_runs

    return list_runs(user_path(folder))
