"""The models of the package: one row each, with a folder of its name in `unistep/assets`.

`scripts/embed_model.py` makes the folders of a run. Every verb takes a model by its name; a file or folder of the same
name has precedence. In `evaluate` the name of a bundled dataset means the images: there a student is NAME-student.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class EmbeddedModel:
    """A model of the package.

    Args:
        name: name by which it is opened.
        images: kind of images that it makes, in the plural.
        title: heading of its images in the demo.
        teacher: name of the embedded diffusion model that it was distilled from; empty for such a model.
        recipe: name of the recipe that trains it.
    """

    name: str
    images: str
    title: str
    teacher: str
    recipe: str

    @property
    def folder(self) -> Path:
        """The model folder."""
        return _ASSETS / self.name

    @property
    def names(self) -> tuple[str, ...]:
        """All names by which it is opened."""
        return (self.name, f"{self.name}-student") if self.teacher else (self.name,)


_ROWS = (
    EmbeddedModel("mnist", "grey digits of 28x28 pixels", "MNIST digits", "mnist-teacher", "mnist-embedded"),
    EmbeddedModel("mnist-teacher", "grey digits of 28x28 pixels", "MNIST digits", "", "mnist-embedded"),
    EmbeddedModel("emoji", "emoji in colour of 32x32 pixels", "Noto emoji", "emoji-teacher", "emoji"),
    EmbeddedModel("emoji-teacher", "emoji in colour of 32x32 pixels", "Noto emoji", "", "emoji"),
)

EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name; the first is the model that is taken where none is named."""

EMBEDDED_NAMES: tuple[str, ...] = tuple(name for row in _ROWS for name in row.names)
"""All names of the rows."""


def embedded_model(name: str | os.PathLike[str]) -> EmbeddedModel | None:
    """The row that a name means; None if there is none, or a file or folder of that name."""
    text = os.fspath(name)
    if text not in EMBEDDED_NAMES or os.path.lexists(text):
        return None
    return next(row for row in _ROWS if text in row.names)


def embedded_at(path: Path) -> EmbeddedModel | None:
    """The row whose folder this is; None for all other places."""
    return next((row for row in _ROWS if row.folder.resolve() == path.resolve()), None)
