"""Datasets in, uint8 tensors out: image folders, zip archives, `.npz` files and the bundled MNIST."""

from unistep.data.config import DataConfig
from unistep.data.dataset import ImageDataset
from unistep.data.open import open_dataset

__all__ = ["DataConfig", "ImageDataset", "open_dataset"]
