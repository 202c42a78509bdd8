"""Base of the classifiers of small images, whose features and labels measure generated ones."""

from typing import ClassVar

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from unistep.errors import UserError


class ImageClassifier(nn.Module):
    """A network whose call returns features [B, feature_dim] and logits [B, num_classes] of images in [-1, 1].

    Attributes:
        title: name of the data that it was trained on.
        shape: channels, height and width of its images.
        feature_dim: number of features.
        num_classes: number of classes.
        batch_size: number of images computed at once.
    """

    title: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    feature_dim: ClassVar[int]
    num_classes: ClassVar[int] = 10
    batch_size: ClassVar[int]

    head: nn.Linear

    @torch.no_grad()
    def features_and_logits(
        self, images: UInt8[Tensor, "N C H W"], batch_size: int | None = None
    ) -> tuple[Float32[Tensor, "N D"], Float32[Tensor, "N K"]]:
        """Returns features and logits on the CPU.

        Args:
            images: images of the attribute `shape`.
            batch_size: number of images computed at once; None is that of the class.

        Raises:
            UserError: the images have another shape.
        """
        channels, height, width = self.shape
        if images.shape[1:] != self.shape:
            colour = {1: "grey", 3: "colour"}[channels]
            raise UserError(
                f"the {self.title} classifier takes images [N, {channels}, {height}, {width}], got "
                f"{list(images.shape)}; use a model of {height}x{width} {colour} images"
            )
        features, logits = torch.empty(len(images), self.feature_dim), torch.empty(len(images), self.num_classes)
        count = batch_size or self.batch_size
        for start in range(0, len(images), count):
            part = slice(start, start + count)
            x = images[part].to(self.head.weight.device).float() / 127.5 - 1
            features[part], logits[part] = (value.float().cpu() for value in self.evaluate(x))
        return features, logits

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features and logits of images in [-1, 1] as they are measured by: those of one call."""
        return self(x.contiguous(memory_format=torch.channels_last))

    def features(self, images: UInt8[Tensor, "N C H W"], batch_size: int | None = None) -> Float32[Tensor, "N D"]:
        """Returns the features of uint8 images."""
        return self.features_and_logits(images, batch_size)[0]

    def logits(self, images: UInt8[Tensor, "N C H W"], batch_size: int | None = None) -> Float32[Tensor, "N K"]:
        """Returns the unnormalised class scores of uint8 images."""
        return self.features_and_logits(images, batch_size)[1]

    def predict(self, images: UInt8[Tensor, "N C H W"], batch_size: int | None = None) -> Int64[Tensor, "N"]:
        """Returns the most likely class, from 0, of each uint8 image."""
        return self.logits(images, batch_size).argmax(dim=1)
