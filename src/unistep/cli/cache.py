"""`unistep cache`: models that are prepared for a runtime."""

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.cache import CacheListing, cache


def run(arguments: list[str]) -> None:
    """Parses, lists or clears, and prints."""
    run_command(arguments, cache, _show, usage="unistep cache [options]")


def _show(listing: CacheListing) -> None:
    if listing.cleared:
        print(f"{listing.cleared} deleted")
    for name, facts in listing.rows():
        print(shown(f"{name}: {facts}"))
    mebibytes = sum(entry["bytes"] for entry in listing.entries) / 2**20
    print(shown(f"{len(listing.entries)} prepared models, {mebibytes:,.1f} MiB in {listing.path}"))
