"""The architecture of DDPM++ and NCSN++, `unistep.networks.song`, and the residual blocks that it consists of."""

from dataclasses import dataclass

from unistep.networks.outline import Outline, further_inputs, resolutions

# Larger than any network there is; what is beyond is a damaged file, and would take all memory.
_MOST = {
    "sample_size": 8192,
    "in_channels": 1024,
    "out_channels": 1024,
    "num_class_embeds": 1_000_000,
    "augment_dim": 100_000,
    "model_channels": 8192,
    "channel_mult_emb": 64,
    "num_blocks": 64,
    "channel_mult_noise": 64,
}
_MOST_LEVELS = 12
_CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}


@dataclass(frozen=True)
class SongUNetConfig:
    """Architecture of a `SongUNet`.

    Args:
        sample_size: side of the image in pixels, a multiple of 2^(resolutions - 1).
        in_channels, out_channels: channels of the image.
        num_class_embeds: number of classes; None is unconditional.
        augment_dim: numbers that describe how a training image was augmented; 0 for none.
        model_channels: width that the multipliers refer to.
        channel_mult: width of each resolution, finest first, in `model_channels`.
        channel_mult_emb: width of the embedding, in `model_channels`.
        num_blocks: residual blocks a resolution; one more in the decoder.
        attn_resolutions: sides of the feature maps that attend.
        dropout: probability inside residual blocks.
        label_dropout: probability that training hides a label, for classifier-free guidance.
        embedding_type: "positional" (DDPM++) or "fourier" (NCSN++).
        fourier_scale: standard deviation of the frequencies of "fourier".
        channel_mult_noise: width of the noise embedding, in `model_channels`.
        encoder_type: "standard" (DDPM++); "residual" (NCSN++) and "skip" show the image again at every resolution.
        decoder_type: "standard"; "skip" sums an output of every resolution.
        resample_filter: taps of the filter that changes the resolution.
        end_embedding: true for a network of flow maps, which takes the end of the trajectory as an input.
        guidance_embedding: true for a network that takes the scale of guidance as an input.

    Raises:
        ValueError: a value out of range, or two that do not fit each other.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    num_class_embeds: int | None = None
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    fourier_scale: float = 16.0
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    end_embedding: bool = False
    guidance_embedding: bool = False

    def __post_init__(self) -> None:
        self._check_ranges()
        depth = len(self.channel_mult)
        if not 1 <= depth <= _MOST_LEVELS:
            raise ValueError(f"channel_mult: {depth} resolutions are not between 1 and {_MOST_LEVELS}")
        if self.sample_size % 2 ** (depth - 1):
            raise ValueError(f"sample_size: {self.sample_size} cannot be halved {depth - 1} times")
        for mult in self.channel_mult:
            if not 1 <= mult <= 64:
                raise ValueError(f"channel_mult: {mult} is not between 1 and 64")
        taps = self.resample_filter
        if len(taps) % 2 or not 2 <= len(taps) <= 16 or not all(1 <= tap <= 1_000_000 for tap in taps):
            raise ValueError(f"resample_filter: {list(taps)} is not an even number of positive taps, 16 at most")
        noise_channels = self.model_channels * self.channel_mult_noise
        if noise_channels % 2 or noise_channels < 4:
            raise ValueError(
                f"model_channels: {noise_channels} channels of the noise embedding are not 4, 6, 8 or more"
            )
        for part in [part for level in levels_of(self) for part in (*level.encoder, *level.decoder)]:
            for channels in (part.in_channels, part.out_channels):
                if channels % num_groups(channels):
                    raise ValueError(
                        f"model_channels: {self.model_channels} makes {channels} channels in {part.name}, "
                        f"which {num_groups(channels)} groups of a norm do not divide; choose a multiple of 32"
                    )

    def _check_ranges(self) -> None:
        for field, most in _MOST.items():
            value = getattr(self, field)
            if field == "num_class_embeds" and value is None:
                continue
            least = 0 if field == "augment_dim" else 1
            if not least <= value <= most:
                raise ValueError(f"{field}: {value} is not between {least} and {most}")
        for field in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}: {getattr(self, field)} is outside [0, 1)")
        if not 0 < self.fourier_scale < 1e6:
            raise ValueError(f"fourier_scale: {self.fourier_scale} is not between 0 and a million")
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}: {getattr(self, field)!r} is not one of {', '.join(known)}")

    def outline(self) -> Outline:
        """The layers in a few numbers."""
        attends = [self.sample_size >> i in self.attn_resolutions for i in range(len(self.channel_mult))]
        return Outline(
            resolutions=resolutions(self.sample_size, [self.model_channels * m for m in self.channel_mult], attends),
            blocks_per_resolution=self.num_blocks,
            attention_head_dim=None,
            middle_attention=True,
            embedding=f"{self.embedding_type} noise embedding",
            further=further_inputs(self.end_embedding, self.guidance_embedding),
        )


@dataclass(frozen=True)
class Part:
    """A residual block.

    Args:
        name: name of the block in checkpoints.
        in_channels: channels of the input, those of a skip connection included.
        out_channels: channels of the output.
        resample: "up", "down" or None.
        attention: true if attention follows.
        takes_skip: true if a skip connection is concatenated to the input.
    """

    name: str
    in_channels: int
    out_channels: int
    resample: str | None = None
    attention: bool = False
    takes_skip: bool = False


@dataclass(frozen=True)
class Level:
    """The residual blocks of a resolution.

    Args:
        name: size of the feature maps, as "16x16".
        encoder, decoder: blocks on the way down and up, in the order they run.
    """

    name: str
    encoder: tuple[Part, ...]
    decoder: tuple[Part, ...]


def levels_of(config: SongUNetConfig) -> list[Level]:
    """The resolutions, finest first."""
    c = config
    names = [f"{c.sample_size >> i}x{c.sample_size >> i}" for i in range(len(c.channel_mult))]
    attends = [c.sample_size >> i in c.attn_resolutions for i in range(len(c.channel_mult))]
    widths = [c.model_channels * mult for mult in c.channel_mult]
    coarsest = len(names) - 1

    width = c.model_channels
    skips = [width]
    encoders, decoders = [], []
    for i, (name, out) in enumerate(zip(names, widths, strict=True)):
        parts = [Part(f"{name}_down", width, width, resample="down")] if i else []
        for j in range(c.num_blocks):
            parts.append(Part(f"{name}_block{j}", width, out, attention=attends[i]))
            width = out
        skips += [part.out_channels for part in parts]
        encoders.append(tuple(parts))
    for i, (name, out) in reversed(list(enumerate(zip(names, widths, strict=True)))):
        if i == coarsest:
            parts = [Part(f"{name}_in0", width, width, attention=True), Part(f"{name}_in1", width, width)]
        else:
            parts = [Part(f"{name}_up", width, width, resample="up")]
        for j in range(c.num_blocks + 1):
            attention = attends[i] and j == c.num_blocks
            parts.append(Part(f"{name}_block{j}", width + skips.pop(), out, attention=attention, takes_skip=True))
            width = out
        decoders.append(tuple(parts))
    return [Level(*level) for level in zip(names, encoders, reversed(decoders), strict=True)]


def num_groups(channels: int) -> int:
    """Groups of a norm over that many channels, which they must divide."""
    return max(1, min(32, channels // 4))
