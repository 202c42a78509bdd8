"""The programs that a model is exported as, as modules without loops or branches that depend on values.

`DenoiserProgram` is the model itself. `SamplerProgram` and `EditProgram` hold everything between noise and pixels:
schedule, scalings, fresh noise, clamping and rounding. Their noise is an input, `[B, K, C, H, W]`, draw k of image i at
`[i, k]`, so that they are functions; by docs/randomness.md it is that of `unistep.sample` and `unistep.edit`.

Images are uint8 `[B, H, W, C]`, the order of pixels in files and canvases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from unistep.core.pixels import nearest_pixels, to_float
from unistep.editing.methods.settle import settle_levels
from unistep.editing.methods.zero_shot import start, zero_shot
from unistep.editing.operators.operator import agree
from unistep.editing.tasks.inpaint import Inpaint
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.generation.plan import Plan
from unistep.samplers.noise_source import NoiseSource
from unistep.samplers.ode_step import clipped, level

_DTYPES = {"float32": torch.float32, "uint8": torch.uint8, "int32": torch.int32}


@dataclass(frozen=True)
class Port:
    """An input or output of a program; the batch is its first dimension.

    Args:
        name: name in the exported file.
        dtype: float32, uint8 or int32.
        shape: shape of one image's part.
        text: content and range, in words.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    text: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as PyTorch has it."""
        return _DTYPES[self.dtype]


class Program(nn.Module):
    """A model as a function of tensors, called as program(*inputs) in the order of `inputs`.

    Args:
        denoiser: denoiser or consistency function.
        shape: channels, height, width of an image.
        num_classes: number of classes; 0 for an unconditional model, whose programs take no classes.
    """

    name = ""
    output: Port

    def __init__(self, denoiser: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.denoiser, self.shape, self.num_classes = denoiser, shape, num_classes
        self.flow_map: bool = getattr(denoiser, "flow_map", False)
        self.guidance: float | None = getattr(denoiser, "guidance", None)
        channels, height, width = shape
        self.output = Port("images", "uint8", (height, width, channels), "pixels, 0 to 255")

    def own_inputs(self) -> tuple[Port, ...]:
        """Inputs other than the classes."""
        return ()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """All inputs, in order."""
        labels = Port("class_labels", "int32", (), f"class of each image, 0 to {self.num_classes - 1}")
        return (*self.own_inputs(), labels) if self.num_classes else self.own_inputs()


class DenoiserProgram(Program):
    """The model itself, (x_t, sigma, class_labels) -> x0.

    That of a flow map takes `sigma_end` after `sigma`, and that of a network with guidance as an input
    `guidance_scale`.
    """

    name = "denoiser"

    def __init__(self, denoiser: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(denoiser, shape, num_classes)
        self.output = Port("x0", "float32", shape, "clean images, nominally in [-1, 1]")

    def own_inputs(self) -> tuple[Port, ...]:
        ports = [
            Port("x_t", "float32", self.shape, "noisy images: image + sigma * noise"),
            Port("sigma", "float32", (), "noise level of each image"),
        ]
        if self.flow_map:
            ports.append(Port("sigma_end", "float32", (), "level at which each trajectory ends, 0 to sigma"))
        if self.guidance is not None:
            ports.append(Port("guidance_scale", "float32", (), "scale of guidance of each image, from 1 up"))
        return tuple(ports)

    def forward(
        self, x_t: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], *more: Shaped[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        given = dict(zip((port.name for port in self.inputs[2:]), more, strict=True))
        end = (given["sigma_end"],) if self.flow_map else ()
        scale = {} if self.guidance is None else {"guidance": given["guidance_scale"]}
        return self.denoiser(x_t, sigma, given.get("class_labels"), *end, **scale)


class SamplerProgram(Program):
    """A sampler of one plan, (noise, class_labels) -> images.

    Args:
        denoiser, shape, num_classes: arguments of `Program`.
        plan: noise levels or solver.
    """

    name = "sampler"

    def __init__(self, denoiser: nn.Module, shape: tuple[int, int, int], num_classes: int, plan: Plan) -> None:
        super().__init__(denoiser, shape, num_classes)
        self.plan = plan
        first, label = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
        self.draws = _count_draws(lambda noise: plan.sample(_nothing, first, label, noise)) + 1

    def own_inputs(self) -> tuple[Port, ...]:
        return (_noise_port(self.draws, self.shape),)

    def forward(
        self, noise: Float[Tensor, "B K C H W"], class_labels: Int[Tensor, " B"] | None = None
    ) -> UInt8[Tensor, "B H W C"]:
        first, *rest = noise.unbind(1)
        return _pixels(self.plan.sample(self.denoiser, first, class_labels, _given(rest)))


class EditProgram(Program):
    """Inpainting, (image, mask, noise, class_labels) -> images; what `unistep.edit` does with the task inpaint.

    Args:
        denoiser, shape, num_classes: arguments of `Program`.
        info: noise range of the model.
        levels: noise levels, descending.
        settle: number of evaluations without noise after these.
    """

    name = "edit"

    def __init__(
        self,
        denoiser: nn.Module,
        shape: tuple[int, int, int],
        num_classes: int,
        info: ModelInfo,
        levels: Sequence[float],
        settle: int,
    ) -> None:
        super().__init__(denoiser, shape, num_classes)
        self.levels, self.sigma_min = tuple(levels), info.sigma_min
        self.settle = tuple(settle_levels(settle, most=info.sigma_max, rho=info.rho))
        self.draws = len(self.levels)

    def own_inputs(self) -> tuple[Port, ...]:
        channels, height, width = self.shape
        return (
            Port("image", "uint8", (height, width, channels), "pixels, 0 to 255"),
            Port("mask", "uint8", (height, width), "other than 0 where to paint"),
            _noise_port(self.draws, self.shape),
        )

    def forward(
        self,
        image: UInt8[Tensor, "B H W C"],
        mask: UInt8[Tensor, "B H W"],
        noise: Float[Tensor, "B K C H W"],
        class_labels: Int[Tensor, " B"] | None = None,
    ) -> UInt8[Tensor, "B H W C"]:
        operator = _Known((mask == 0).to(torch.float32)[:, None])
        y = operator.A(to_float(image.permute(0, 3, 1, 2)))
        first, *rest = noise.unbind(1)
        x_T = start(operator, y, first, self.levels[0])
        edited = zero_shot(
            self.denoiser,
            operator,
            y,
            x_T,
            self.levels,
            class_labels,
            random=_given(rest),
            sigma_min=self.sigma_min,
        )
        # Of a mask, an image that agrees stays in agreement when it is clamped: one round of `settle` is enough.
        x = agree(operator, edited.x, y).clamp(-1, 1)
        denoiser = clipped(self.denoiser, True)
        for sigma in self.settle:
            x = agree(operator, denoiser(x, level(sigma, x), class_labels), y).clamp(-1, 1)
        return _pixels(x)


class _Known:
    """Measures the pixels where `known` is 1, and leaves 0 elsewhere: as `Inpainting`, with a mask of each image."""

    name = "inpainting"

    def __init__(self, known: Tensor) -> None:
        self.known = known

    def A(self, x: Tensor) -> Tensor:
        return x * self.known

    def A_pinv(self, y: Tensor) -> Tensor:
        return y


def denoiser_program(model: LoadedModel, denoiser: nn.Module | None = None) -> DenoiserProgram:
    """Makes the program of a model itself.

    Args:
        model: model.
        denoiser: the model's denoiser in another precision; None is its own.
    """
    return DenoiserProgram(denoiser or model.denoiser, model.image_shape, model.num_classes)


def sampler_program(model: LoadedModel, plan: Plan, denoiser: nn.Module | None = None) -> SamplerProgram:
    """Makes the program that samples a model by a plan; the other arguments are those of `denoiser_program`."""
    return SamplerProgram(denoiser or model.denoiser, model.image_shape, model.num_classes, plan)


def edit_program(model: LoadedModel, steps: int | None = None, denoiser: nn.Module | None = None) -> EditProgram:
    """Makes the program that paints what a mask marks.

    Args:
        model: consistency model.
        steps: number of noise levels; None is the task's own number.
        denoiser: the model's denoiser in another precision; None is its own.
    """
    usual = Inpaint.default
    levels = usual.at(steps, first=min(usual.sigma_first, model.info.sigma_max), rho=model.info.rho)
    shape, info = model.image_shape, model.info
    return EditProgram(denoiser or model.denoiser, shape, model.num_classes, info, levels, usual.settle)


def _noise_port(draws: int, shape: tuple[int, int, int]) -> Port:
    return Port("noise", "float32", (draws, *shape), "unit Gaussian noise, one draw after the other")


def _pixels(x: Tensor) -> Tensor:
    return nearest_pixels(x).permute(0, 2, 3, 1)


def _given(draws: list[Tensor]) -> NoiseSource:
    left = iter(draws)
    return lambda x: next(left)


def _count_draws(sample: Callable[[Any], Any]) -> int:
    """The number of draws that a sampler makes after the first."""
    count = 0

    def one(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros_like(x)

    sample(one)
    return count


def _nothing(x_t: Tensor, *given: Any, guidance: Tensor | None = None) -> Tensor:
    return x_t


def evaluations(program: Program) -> int:
    """Returns the number of network evaluations of a program."""
    if isinstance(program, SamplerProgram):
        return program.plan.nfe
    return len(program.levels) + len(program.settle) if isinstance(program, EditProgram) else 1
