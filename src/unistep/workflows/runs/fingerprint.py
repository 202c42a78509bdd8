"""The fingerprint of a run's images: a run that goes on must see those that it began with.

data.json     number, shape and classes of the images, and the SHA-256 digest of their pixels and labels
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from unistep.data import ImageDataset
from unistep.errors import UserError
from unistep.files import check_regular_file, whole_file, write_error

DATA = "data.json"
"""Name of the file in a run directory."""

_log = logging.getLogger("unistep")

_MOST_BYTES = 1_000_000
# Of larger datasets as many images as fill so many bytes, at equal distances, stand for all.
_PIXELS = 1 << 28


def fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """Number, shape and classes of a dataset, and the digest of its pixels and labels.

    Args:
        dataset: images and labels.
    """
    count, digest = len(dataset), hashlib.sha256()
    if dataset.labels is not None:
        labels: Any = dataset.labels.contiguous().numpy()
        digest.update(labels)
    apart = max(1, -(-dataset.images.numel() // _PIXELS))
    block = max(1, (1 << 22) // max(1, dataset.images[0].numel()))
    for start in range(0, count, apart * block):
        images: Any = dataset.images[start : start + apart * block : apart].contiguous().numpy()
        digest.update(images)
    shape = list(dataset.images.shape[1:])
    return {"images": count, "shape": shape, "classes": dataset.num_classes, "sha256": digest.hexdigest()}


def check_data(folder: Path, dataset: ImageDataset, source: str) -> None:
    """Passes where the images are those that the run began with; writes their fingerprint where there is none.

    Args:
        folder: folder of the run.
        dataset: its images.
        source: their name.

    Raises:
        UserError: they are others, or the fingerprint cannot be written.
    """
    path, now = folder / DATA, fingerprint(dataset)
    former = _read(path)
    if former is None:
        try:
            with whole_file(path, durable=True) as temporary:
                temporary.write_text(json.dumps(now) + "\n", encoding="utf-8")
        except OSError as error:
            raise write_error(path, error, "resume") from None
        return
    differing = [name for name in now if former.get(name) != now[name]]
    if differing:
        name = differing[0]
        what = "pixels or labels" if name == "sha256" else f"{name} ({former.get(name)}, now {now[name]})"
        raise UserError(
            f"{source} is not what the run began with: it differs in {what}",
            f"put the former images back, or remove {path} to go on with these",
        )


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    check_regular_file(path, "remove it", most_bytes=_MOST_BYTES)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _log.warning("%s is damaged, and written anew: whether the images are still the same is open", path)
        return None
    return value
