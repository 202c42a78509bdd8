"""Identity of a feature network, without which no two numbers compare.

Features are vectors of one of three kinds. A network has "pool", and may have the others:

    pool            one vector an image, of which FID, KID, precision and recall are computed
    spatial         features of places in the image, flattened, of which sFID is computed
    probabilities   of classes, of which the inception score is computed
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Kind = Literal["pool", "spatial", "probabilities"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Resize = Literal["legacy-tensorflow", "clean", "none"]
"""Method that brings images to the size of the network's input; see `unistep.metrics.features.resize`."""


@dataclass(frozen=True)
class FeatureInfo:
    """Everything on the side of the feature network that a number depends on.

    Args:
        name: name that `unistep.metrics.features.table.open_features` takes: inception, onnx:FILE, ...
        label: name of the network in the titles of metrics, as in FD-EffNetLite0@224.
        digest: SHA-256, in hexadecimal, of the weights and of whatever else determines the features but the resize.
        resize: method of the resize, see `Resize`.
        dims: length of the vectors of each kind that the network has; "pool" always.
        channels: channels of the images that it takes: 1, 3, or None for both (grey images are then repeated to three
            channels).
        classifies: whether its probabilities are of the classes that the images are labelled with.
    """

    name: str
    label: str
    digest: str
    resize: Resize
    dims: dict[Kind, int]
    channels: int | None = None
    classifies: bool = False

    @property
    def key(self) -> str:
        """Hash of digest, resize and dimensions: equal exactly for networks whose numbers compare."""
        identity = {name: value for name, value in asdict(self).items() if name in ("digest", "resize", "dims")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
