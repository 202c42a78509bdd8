"""The bundled MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels.

Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998; CC BY-SA 3.0, see
`mnist.LICENSE.md` beside this file. `scripts/make_mnist.py` makes the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from unistep.data.npz import NpzReader
from unistep.errors import UserError

MNIST_PATH = Path(__file__).with_name("mnist.npz")
MNIST_SHA256 = "1e80f553d356e56eb20502bc8ebe59148ab54ebb35ee485bf403967732cbee55"


def mnist_reader(split: Literal["train", "test"], path: Path = MNIST_PATH) -> NpzReader:
    """Opens one half of MNIST, checked against its SHA-256 sum.

    Args:
        split: "train" or "test".
        path: the file; another than the bundled one is refused.

    Raises:
        UserError: the file is missing, or differs from the bundled one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the bundled MNIST cannot be read ({error.strerror}); reinstall unistep") from error
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST_SHA256:
        raise UserError(f"{path}: the bundled MNIST was changed (sha256 {found}); reinstall unistep")
    location = "mnist" if split == "train" else "mnist-test"
    return NpzReader(content, location, (f"{split}_images",), (f"{split}_labels",), [str(digit) for digit in range(10)])
