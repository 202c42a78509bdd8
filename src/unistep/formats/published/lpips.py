"""The two files that LPIPS is made of: a VGG16 trained on ImageNet, and the weights of its features' differences.

    vgg16-397923af.pth    torchvision's VGG16, of which the convolutions are taken; 528 MiB
    lpips-v0.1-vgg.pth    `lpips/weights/v0.1/vgg.pth` of the authors' repository; 7 KiB

They are downloaded once, unless the user names files of their own: the same files, or others with the same names of
tensors, as PyTorch files or safetensors. A download counts only with the published SHA-256, at its arrival and whenever
it is opened again; a user's own files may have any content. Nothing in any of them is executed.
"""

from dataclasses import dataclass
from pathlib import Path

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.formats.published.file import PublishedFile, cache_folder, expanded, fetch
from unistep.formats.tensor_file import read_tensors
from unistep.networks.lpips import LPIPS, Pooling

# Of the first convolution of each of the five stages: it has one number a channel.
_BIASES = ("features.0.bias", "features.5.bias", "features.10.bias", "features.17.bias", "features.24.bias")


@dataclass(frozen=True)
class LPIPSConfig:
    """Files of the weights of LPIPS.

    Args:
        vgg: path of a VGG16 (`vgg16-397923af.pth`); null downloads it once, 528 MiB.
        heads: path of LPIPS' weights for VGG16, version 0.1 (`vgg.pth`); null downloads it once.
    """

    vgg: str | None = None
    heads: str | None = None


VGG16 = PublishedFile(
    name="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    key="`lpips.vgg`",
)
HEADS = PublishedFile(
    name="lpips-v0.1-vgg.pth",
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    key="`lpips.heads`",
)


def load_lpips(
    vgg: str | Path | None = None,
    heads: str | Path | None = None,
    *,
    pooling: Pooling = "average",
    cache_dir: str | Path | None = None,
) -> LPIPS:
    """Opens LPIPS; a file without a path is downloaded once.

    Args:
        vgg: a file with the `features.N.weight` and `features.N.bias` of a VGG16; other tensors in it are left out.
        heads: a file with `lin0.model.1.weight` to `lin4.model.1.weight`, of as many channels as the VGG's stages.
        pooling: "average", as consistency models were trained with, or "max", as the original.
        cache_dir: folder of downloads; None is `$XDG_CACHE_HOME/unistep/lpips`, or `~/.cache/unistep/lpips` where
            that variable is not set.

    Returns:
        The distance on the CPU in fp32, frozen.

    Raises:
        UserError: a file cannot be downloaded, cannot be read, is damaged, or holds something else.
    """
    folder = cache_folder("lpips", cache_dir)
    # The small one first: who has no network, or no leave to write the cache, learns of it at once.
    heads_path = fetch(HEADS, folder, needed=(VGG16, HEADS)) if heads is None else expanded(heads)
    vgg_path = fetch(VGG16, folder, needed=(VGG16, HEADS)) if vgg is None else expanded(vgg)
    with without_weights():
        names = LPIPS().state_dict()
    state = read_tensors(heads_path, [name for name in names if name.startswith("lin")], HEADS.remedy)
    state |= read_tensors(vgg_path, [name for name in names if name.startswith("features")], VGG16.remedy)
    # The widths are the file's own. Those of VGG16 are the only published ones.
    widths = [max(1, state[name].numel()) for name in _BIASES]
    with without_weights():
        network = LPIPS(pooling, widths=widths)
    for name, expected in network.state_dict().items():
        if (found := state[name]).shape != expected.shape:
            path, published = (heads_path, HEADS) if name.startswith("lin") else (vgg_path, VGG16)
            raise UserError(
                f"{path}: tensor {name} has shape {list(found.shape)}, LPIPS needs {list(expected.shape)}; "
                f"{published.remedy}"
            )
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
