"""What a feature network is: images in, vectors out, and an identity without which no two numbers compare.

Three kinds of vectors are known. A network has "pool", and may have the others:

    pool            one vector an image, on which FID, KID, precision and recall are measured
    spatial         features of places in the image, flattened, on which sFID is measured
    probabilities   of classes, on which the inception score is measured
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Float32, UInt8
from torch import Tensor

Kind = Literal["pool", "spatial", "probabilities"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Resize = Literal["legacy-tensorflow", "clean", "none"]
"""How images are brought to the size of the network's input; see `unistep.metrics.features.resize`."""


@dataclass(frozen=True)
class FeatureInfo:
    """What a number depends on, on the side of the feature network.

    Args:
        name: as `--features` takes it: inception, dinov2, mnist, effnet-lite0, onnx:FILE.
        label: for the names of its measures, as in FD-EffNetLite0@224.
        digest: SHA-256, in hexadecimal, of the weights and of whatever else determines the features but the resize.
        resize: see `Resize`.
        dims: length of the vectors of each kind that the network has; "pool" always.
        channels: of the images it takes: 1, 3, or None for both (grey images are then repeated to three channels).
    """

    name: str
    label: str
    digest: str
    resize: Resize
    dims: dict[Kind, int]
    channels: int | None = None

    @property
    def key(self) -> str:
        """Equal exactly for networks whose numbers compare: a hash of the digest and the resize."""
        identity = {name: value for name, value in asdict(self).items() if name in ("digest", "resize", "dims")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@runtime_checkable
class FeatureNetwork(Protocol):
    """Takes images, gives features. Implementations are stateless, in eval mode and without gradients."""

    info: FeatureInfo

    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """The features of uint8 images, on the CPU; of all the `kinds` that are asked for, in one pass where possible.

        Raises:
            UserError: the images are not of a size or number of channels that the network takes, or a kind is asked
                for that it does not have.
        """
        ...
