"""`unistep data inspect`: what a dataset holds."""

import sys

from unistep.cli.arguments import new_parser, parse
from unistep.errors import UserError


def run(arguments: list[str]) -> None:
    """Prints the report of one dataset."""
    parser = new_parser("data inspect", "Print a dataset's counts, sizes, classes and per-channel mean and deviation.")
    parser.add_argument(
        "path", type=str | None, nargs="?", default=None, help="folder, .zip, .npz, or mnist / mnist-test (bundled)"
    )
    parser.add_argument("--skip_bad", action="store_true", help="count and list unreadable images instead of stopping")
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    if not arguments:
        raise UserError("data needs a command: unistep data inspect PATH")
    if arguments[0] != "inspect":
        raise UserError(f"unknown command data {arguments[0]!r}; did you mean data inspect?")
    parsed = parse(parser, arguments[1:])
    if parsed.path is None:
        raise UserError("data inspect needs a path: unistep data inspect PATH")

    from rich.console import Console

    from unistep.data.inspect import inspect

    report = inspect(parsed.path)
    Console().print(report.render())
    if report.bad and not parsed.skip_bad:
        name, reason = report.bad[0]
        raise UserError(f"{name}: {reason} ({len(report.bad)} bad in all); mend or remove it, or give --skip-bad")
