"""Datasets in, uint8 tensors out: image folders, archives, files of arrays, published datasets and bundled ones."""

from typing import TYPE_CHECKING, Any

from unistep.data.config import DataConfig

if TYPE_CHECKING:
    from unistep.data.dataset import ImageDataset
    from unistep.data.open import open_dataset, read_dataset

__all__ = ["DataConfig", "ImageDataset", "open_dataset", "read_dataset"]

# Imported when first asked for: a config of a dataset needs no torch.
_MODULES = {
    "ImageDataset": "unistep.data.dataset",
    "open_dataset": "unistep.data.open",
    "read_dataset": "unistep.data.open",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module 'unistep.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
