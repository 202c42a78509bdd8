"""The architecture of a U-Net on folded images, `unistep.networks.patched`."""

from dataclasses import dataclass, fields, replace

from unistep.networks.adm_config import UNetConfig
from unistep.networks.outline import Outline


@dataclass(frozen=True)
class PatchedUNetConfig(UNetConfig):
    """A `UNet` behind a fold; `sample_size`, `in_channels` and `out_channels` are those of the image.

    Args:
        patch_size: pixels of a side folded into channels; 1 is the plain `UNet`.
    """

    patch_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1:
            raise ValueError(f"patch_size: {self.patch_size} is not at least 1")
        if self.sample_size is not None:
            multiple = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
            if self.sample_size % multiple:
                raise ValueError(
                    f"sample_size {self.sample_size} is not a multiple of {multiple} "
                    f"(patch_size {self.patch_size}, {len(self.block_out_channels)} resolutions)"
                )

    def inner(self) -> UNetConfig:
        """The config of the network behind the fold."""
        own = {f.name: getattr(self, f.name) for f in fields(UNetConfig)}
        p = self.patch_size
        own["sample_size"] = self.sample_size // p if self.sample_size else None
        own["in_channels"] *= p * p
        own["out_channels"] *= p * p
        return UNetConfig(**own)

    def outline(self) -> Outline:
        """The layers in a few numbers; resolutions are those of the folded image."""
        outline, p = super().outline(), self.patch_size
        folded = tuple(replace(resolution, size=resolution.size // p) for resolution in outline.resolutions)
        return replace(outline, resolutions=folded, patch_size=p)
