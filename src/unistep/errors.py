"""The error that a user can cause."""


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
        super().__init__((f"`{field}` " if field else "") + problem + (f"; {remedy}" if remedy else ""))
        self.problem, self.remedy, self.field = problem, remedy, field
