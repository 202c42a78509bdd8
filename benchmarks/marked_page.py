"""Markdown pages with a part that a benchmark writes, between two lines that nobody sees:

<!-- NAME: begin -->
<!-- NAME: end -->
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MarkedPage:
    """A page with a part of a name.

    Args:
        path: the page.
        name: name of the part.

    Raises:
        ValueError: there is no such page, or it has no such part.
    """

    path: Path
    name: str

    def __post_init__(self) -> None:
        self._around()

    def write(self, text: str) -> None:
        """Replaces the part by a text."""
        before, after = self._around()
        self.path.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")

    def _around(self) -> tuple[str, str]:
        """What stands before the part and after it, its two lines included."""
        begin, end = (f"<!-- {self.name}: {word} -->" for word in ("begin", "end"))
        try:
            before, found, rest = self.path.read_text(encoding="utf-8").partition(begin)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from None
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{self.path} has no lines {begin} and {end}, in this order")
        return before + begin, end + after


def marked_page(name: str) -> Callable[[str], MarkedPage]:
    """Returns the type of an argument that names a page with a part: refused before anything is measured.

    Args:
        name: name of the part.
    """

    def page(path: str) -> MarkedPage:
        try:
            return MarkedPage(Path(path), name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return page
