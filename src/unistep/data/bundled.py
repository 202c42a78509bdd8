"""The bundled datasets: one row each.

- MNIST: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998; made by
  `scripts/make_mnist.py`.
- Emoji: pictures of Noto Emoji 2.048, Google; made by `scripts/make_emoji.py`.

The licences are in the `.LICENSE.md` files beside this one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from unistep.data.npz import NpzReader
from unistep.errors import UserError

_MNIST = "1e80f553d356e56eb20502bc8ebe59148ab54ebb35ee485bf403967732cbee55"
_EMOJI = "254242809371d8d655e57336cb31499323bbb2be7864031f3e6f3cd96dcf7156"
_DIGITS = tuple(str(digit) for digit in range(10))
_KINDS = (
    "happy faces",
    "doubtful faces",
    "unhappy faces",
    "cats and masks",
    "hearts",
    "emotions",
    "hands",
    "body parts",
    "persons",
    "gestures",
    "professions",
    "fantasy figures",
    "persons in action",
    "athletes",
    "families",
    "mammals",
    "birds",
    "reptiles and bugs",
    "sea animals",
    "plants",
    "fruit",
    "vegetables",
    "dishes",
    "sweets",
    "drinks",
    "land vehicles",
    "ships and aircraft",
    "buildings",
    "places",
    "sky and weather",
    "clocks",
    "sports",
    "games and arts",
    "events",
    "clothing",
    "devices",
    "music",
    "paper",
    "office",
    "household",
    "tools",
    "letters",
    "arrows",
    "player buttons",
    "shapes",
    "zodiac and religion",
    "signs",
    "other symbols",
    "flags",
)


@dataclass(frozen=True)
class Bundled:
    """A dataset of the package.

    Args:
        name: name by which `open_dataset` opens the dataset.
        file: name of the .npz, beside this module.
        sha256: SHA-256 sum of the .npz.
        images: name of the array of the images.
        labels: name of the array of the labels.
        class_names: names of the classes, in the order of the labels.
        size: side of the images in pixels.
        channels: 1 for grey, 3 for colour.
        title: data and licence in a few words, for model cards.
    """

    name: str
    file: str
    sha256: str
    images: str
    labels: str
    class_names: tuple[str, ...]
    size: int
    channels: int
    title: str

    @property
    def num_classes(self) -> int:
        """Number of the classes."""
        return len(self.class_names)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(__file__).with_name(self.file)

    def reader(self, path: Path | None = None) -> NpzReader:
        """Opens the dataset, checked against its SHA-256 sum.

        Args:
            path: file to read; None is the bundled one, and any other content is refused.

        Raises:
            UserError: the file is missing, or differs from the bundled one.
        """
        path = self.path if path is None else path
        remedy = "reinstall unistep"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: the bundled dataset cannot be read ({error.strerror})", remedy) from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise UserError(f"{path}: the bundled dataset was changed (sha256 {found})", remedy)
        return NpzReader(content, self.name, (self.images,), (self.labels,), list(self.class_names))


_ROWS = (
    Bundled("mnist", "mnist.npz", _MNIST, "train_images", "train_labels", _DIGITS, 28, 1, "MNIST, CC BY-SA 3.0"),
    Bundled("mnist-test", "mnist.npz", _MNIST, "test_images", "test_labels", _DIGITS, 28, 1, "MNIST, CC BY-SA 3.0"),
    Bundled("emoji", "emoji.npz", _EMOJI, "images", "labels", _KINDS, 32, 3, "Noto Emoji, Apache-2.0"),
)

BUNDLED: Mapping[str, Bundled] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name; a folder of the same name is reached as `./mnist`."""
