"""The one error a user can cause."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the thing and the remedy.

    The command line prints the line and exits with code 2; from Python it is an ordinary `ValueError`.
    """
