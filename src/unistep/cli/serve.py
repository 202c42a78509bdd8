"""`unistep serve`: models behind HTTP, with a page to try them on."""

from unistep.cli.command import run_command
from unistep.serving.serve import serve


def run(arguments: list[str]) -> None:
    """Parses, and serves until it is stopped."""
    run_command(
        arguments,
        serve,
        lambda server: None,
        usage="unistep serve [MODEL ...] [options]",
        positionals=("models",),
        several=("name",),
        leave_out=("background",),
    )
