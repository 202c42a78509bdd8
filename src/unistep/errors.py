"""The error that a user can cause."""

_LONGEST = 2000  # characters of a message; names and values of others have any length


class UserError(ValueError):
    """A mistake in the arguments or inputs: one line that names the value and the remedy.

    Parameters are named in backticks as Python spells them, `` `batch_size` `` or `` `skip_bad=True` ``; the command
    line spells them as its flags, prints the line and exits with code 2.

    Args:
        problem: mistake, with the file or value that has it.
        remedy: way to mend it; empty where `problem` ends in it.
        field: name of the parameter that is wrong, at the beginning of the line; empty where `problem` names it.
    """

    def __init__(self, problem: str, remedy: str = "", *, field: str = "") -> None:
        between = " " if problem.endswith("?") else "; "
        line = (f"`{field}` " if field else "") + problem + (between + remedy if remedy else "")
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
        # Names and texts of others may hold line ends, and codes that a terminal obeys.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line))
        self.problem, self.remedy, self.field = problem, remedy, field
