"""The published datasets that are fetched on request: one row each, with their official files.

The digests are those of the files that the authors publish, as TensorFlow, Keras and torchvision state them.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from unistep.data.cache import cache_root
from unistep.data.cifar import open_cifar
from unistep.data.idx import open_idx
from unistep.data.raw import RawReader
from unistep.errors import UserError


@dataclass(frozen=True)
class PublishedFile:
    """A file of a dataset.

    Args:
        name: name of the file.
        num_bytes: its size.
        sha256: its SHA-256 sum.
    """

    name: str
    num_bytes: int
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Returns whether a file is there, whole and unchanged."""
        try:
            with path.open("rb") as file:
                whole = os.fstat(file.fileno()).st_size == self.num_bytes
                return whole and hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:  # told where it is written or read
            return False


@dataclass(frozen=True)
class Published:
    """A dataset.

    Args:
        name: name by which `unistep data fetch` fetches the dataset.
        title: data and source in a few words, for model cards.
        description: number and kind of the images in words.
        size: side of the images in pixels.
        channels: 1 for grey, 3 for colour.
        num_classes: number of the classes.
        mirrors: addresses of the folder of the files, in the order in which they are tried.
        files: the files.
        readers: function that opens the folder of the files, by the name of each source of images.
    """

    name: str
    title: str
    description: str
    size: int
    channels: int
    num_classes: int
    mirrors: tuple[str, ...]
    files: tuple[PublishedFile, ...]
    readers: Mapping[str, Callable[[Path, str], RawReader | None]]

    @property
    def folder(self) -> Path:
        """The folder of the fetched files, in the user's cache."""
        return cache_root() / "fetched" / self.name

    def reader(self, source: str) -> RawReader:
        """Opens the images of a source of `readers`.

        Raises:
            UserError: the dataset is not fetched, or a file was changed.
        """
        fetch = f"fetch it with: unistep data fetch {self.name}"
        for file in self.files:
            path = self.folder / file.name
            if not path.exists():
                here = f"; ./{source} is what is here by that name" if os.path.exists(source) else ""
                raise UserError(f"{source} is not fetched yet", fetch + here)
            if not file.is_at(path):
                raise UserError(f"{path} was changed", fetch)
        reader = self.readers[source](self.folder, source)
        if reader is None:
            raise UserError(f"{self.folder} cannot be read", fetch)
        return reader


_CLOTHES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))


def _idx_files(*rows: tuple[int, str]) -> tuple[PublishedFile, ...]:
    """The four files of MNIST and its like."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(PublishedFile(f"{name}-ubyte.gz", *row) for name, row in zip(names, rows, strict=True))


def _idx(half: str, class_names: tuple[str, ...]) -> Callable[[Path, str], RawReader | None]:
    return lambda folder, source: open_idx(folder / f"{half}-images-idx3-ubyte.gz", source, class_names)


_ROWS = (
    Published(
        "cifar10",
        "CIFAR-10, Krizhevsky 2009",
        "60,000 photographs of 32 x 32 pixels in 10 classes",
        *(32, 3, 10),
        ("https://www.cs.toronto.edu/~kriz/", "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"),
        (
            PublishedFile(
                "cifar-10-python.tar.gz",
                170_498_071,
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
        ),
        {
            "cifar10": lambda folder, source: open_cifar(folder / "cifar-10-python.tar.gz", source),
            "cifar10-test": lambda folder, source: open_cifar(folder / "cifar-10-python.tar.gz", source, test=True),
        },
    ),
    Published(
        "mnist",
        "MNIST, LeCun, Cortes and Burges 1998",
        "70,000 handwritten digits of 28 x 28 pixels",
        *(28, 1, 10),
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        _idx_files(
            (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
        {},  # the names are those of the bundled files, which hold the same images
    ),
    Published(
        "fashion-mnist",
        "Fashion-MNIST, Zalando 2017, MIT",
        "70,000 articles of clothing of 28 x 28 pixels in 10 classes",
        *(28, 1, 10),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        _idx_files(
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        {"fashion-mnist": _idx("train", _CLOTHES), "fashion-mnist-test": _idx("t10k", _CLOTHES)},
    ),
)

PUBLISHED: Mapping[str, Published] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name."""

SOURCES: Mapping[str, Published] = MappingProxyType({source: row for row in _ROWS for source in row.readers})
"""The row of each source of images; a folder of the same name is reached as `./cifar10`."""
