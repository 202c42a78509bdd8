"""`ConsistencyModelPipeline`: a drop-in for diffusers' class of that name.

    pipe = ConsistencyModelPipeline.from_pretrained("openai/diffusers-cd_cat256_l2")
    pipe(num_inference_steps=1).images[0].save("cat.png")
    pipe(num_inference_steps=None, timesteps=[18, 0]).images[0]

Calls, meanings and errors are those of diffusers 0.42; the same generator gives the same images. What differs:

- every format that this package reads can be opened: diffusers folders, the hub, OpenAI's .pt files, runs' models;
- `sigmas` gives noise levels directly, `seeds` one seed an image; any number of channels;
- labels that are not given are drawn from the generator, so that a seed fixes them as well;
- in half precision noise, scalings and images stay fp32, as do the time embedding and the output head;
- a schedule that does not begin at sigma_max is refused;
- `unet` is this package's network, called as unet(x, c_noise, class_labels).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.pipelines.scheduler import CMStochasticIterativeScheduler, Generator, randn
from unistep.runtime.precision import resolve_dtype, set_precision

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

OutputType = Literal["pil", "np", "pt"]
_PIL_CHANNELS = (1, 2, 3, 4)  # L, LA, RGB, RGBA
_SHARED = ("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps", "noise_embedding")


class _LabelError(UserError, AssertionError):
    """diffusers asserts where this is raised."""


@dataclass(frozen=True)
class ImagePipelineOutput:
    """What a call returns; also to be had as output[0] or output["images"].

    Args:
        images: PIL images; or fp32 in [0, 1], [B, H, W, C] for "np", [B, C, H, W] for "pt".
    """

    images: "list[Image.Image] | np.ndarray | Tensor"

    def to_tuple(self) -> tuple[Any]:
        """(images,)"""
        return (self.images,)

    def __getitem__(self, key: int | str) -> Any:
        return self.images if key == "images" else self.to_tuple()[key]  # pyright: ignore

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())


class ConsistencyModelPipeline:
    """A consistency model and its scheduler.

    Args:
        unet: the network, whose `config` gives size, channels and classes.
        scheduler: the noise levels and steps.
        info: what else the model's files say; kept when the pipeline is saved.
    """

    def __init__(
        self, unet: nn.Module, scheduler: CMStochasticIterativeScheduler, info: ModelInfo | None = None
    ) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.info = info or ModelInfo()
        self._progress: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------ open and save

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: torch.device | str | None = None,
        kind: Literal["consistency", "diffusion"] | None = None,
        attention_head_dim: int | None = None,
        sample_size: int | None = None,
    ) -> "ConsistencyModelPipeline":
        """Opens a consistency model of any format that `unistep.load` opens.

        Args:
            pretrained_model_name_or_path: model folder, run directory, OpenAI .pt, or owner/name on the hub.
            torch_dtype, dtype: precision of the blocks, two names of one thing: a torch dtype, "fp32", "fp16", "bf16",
                or "auto", which logs what it picked; fp32 if not given.
            variant: variant of the weights in a model folder, as "fp16".
            revision: branch, tag or commit on the hub.
            token: access token for private models on the hub.
            cache_dir: folder of downloads.
            local_files_only: take what was downloaded before, and download nothing.
            device: device of the model; CPU if not given.
            kind: "consistency" for a .pt whose name tells otherwise.
            attention_head_dim: channels of an attention head in a .pt; 64 if not given.
            sample_size: side of a .pt's images in pixels; that at which attention begins at 32 pixels if not given.

        Raises:
            UserError: there is no such model, it is damaged, or it is a diffusion model.
        """
        from unistep.formats.open import open_model

        if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
            raise UserError(f"torch_dtype {torch_dtype} and dtype {dtype} are two names of one option; give one")
        model = open_model(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            variant=variant,
            kind=kind,
            attention_head_dim=attention_head_dim,
            sample_size=sample_size,
        )
        pipe = cls.from_model(model)
        return pipe.to(device or "cpu", dtype or torch_dtype or torch.float32)

    @classmethod
    def from_model(cls, model: LoadedModel) -> "ConsistencyModelPipeline":
        """The pipeline of an opened consistency model.

        Raises:
            UserError: it is a diffusion model.
        """
        if model.info.kind != "consistency":
            raise UserError(
                f"{model.path} is a diffusion model, which one evaluation does not sample; "
                "distill it, or sample it step by step: unistep sample"
            )
        scheduler = CMStochasticIterativeScheduler(**{name: getattr(model.info, name) for name in _SHARED})
        return cls(model.denoiser.network, scheduler, model.info)

    def to_model(self) -> LoadedModel:
        """Returns the pipeline's network and noise range as a `LoadedModel` that shares its weights."""
        info = replace(self.info, **{name: getattr(self.scheduler.config, name) for name in _SHARED})
        config: Any = self.unet.config
        return LoadedModel(precondition(self.unet, info), info, config, Path("pipeline"), dtype=self.dtype)

    def save_pretrained(self, save_directory: str | Path, *, variant: str | None = None, card: str = "") -> None:
        """Writes a model folder in diffusers' layout; the weights keep the precision of their blocks.

        Raises:
            UserError: the place cannot be written to, or holds something else; the scheduler has settings that model
                folders cannot keep.
        """
        from unistep.formats.model_folder.card import plain_card
        from unistep.formats.model_folder.folder import save_model

        config = asdict(self.scheduler.config)
        if config["s_noise"] != 1 or not config["clip_denoised"]:
            raise UserError(
                f"{save_directory}: model folders keep no s_noise {config['s_noise']:g} and no clip_denoised "
                f"{config['clip_denoised']}; set the scheduler to 1 and True"
            )
        info = replace(self.info, **{name: config[name] for name in _SHARED})
        path = Path(save_directory)
        network: Any = self.unet
        save_model(path, network, info, card=card or plain_card(path.name, info), dtype=self.dtype, variant=variant)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Saves the pipeline and uploads the folder to the hub; returns its address.

        Raises:
            UserError: no network, no permission, or not a name of the hub.
        """
        from tempfile import TemporaryDirectory

        from unistep.formats.hub.download import push_folder

        with TemporaryDirectory() as folder:
            path = Path(folder) / repo_id.rsplit("/", 1)[-1]
            self.save_pretrained(path)
            return push_folder(path, repo_id, token=token, private=private, commit_message=commit_message)

    # ------------------------------------------------------------------------------------------ place and precision

    @property
    def components(self) -> dict[str, Any]:
        """The parts by their names."""
        return {"unet": self.unet, "scheduler": self.scheduler}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network's blocks."""
        lowest = min((p.dtype for p in self.unet.parameters()), key=lambda d: torch.finfo(d).bits)
        return lowest

    def to(
        self, *args: torch.device | torch.dtype | str | None, device: Any = None, dtype: Any = None
    ) -> "ConsistencyModelPipeline":
        """Moves the network, sets the precision of its blocks, or both: to("cuda"), to(torch.float16), to("cuda", ...).

        Raises:
            UserError: neither a device nor a dtype.
        """
        for arg in args:
            if isinstance(arg, torch.dtype) or (isinstance(arg, str) and arg in ("auto", "fp32", "fp16", "bf16")):
                dtype = arg
            elif arg is not None:
                device = arg
        try:
            if device is not None:
                self.unet.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device}: {str(error).splitlines()[0]}; give one that this machine has") from None
        if dtype is not None:
            chosen, why = resolve_dtype(dtype, self.device)
            if dtype == "auto":
                _say(f"dtype auto: {why}")
            set_precision(self.unet, chosen)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the tqdm bar that a call of several steps shows on a terminal; disable=True hides it."""
        self._progress = options

    # ------------------------------------------------------------------------------------------ call

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Shaped[Tensor, "..."] | Sequence[int] | int | None = None,
        num_inference_steps: int | None = 1,
        timesteps: Sequence[int] | None = None,
        generator: Generator = None,
        latents: Float[Tensor, "B C H W"] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        callback_steps: int | None = 1,
        *,
        sigmas: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Makes images.

        Args:
            batch_size: how many.
            class_labels: one class an image, or one for a single image; drawn if not given. Unconditional models
                ignore it.
            num_inference_steps: network evaluations, evenly spaced over the grid.
            timesteps: indices of the grid in descending order that end with 0 (sigma_max), as [18, 0]; instead of
                `num_inference_steps`.
            generator: draws noise and labels; one for all, or one an image. Without one torch's default generator.
            latents: unit Gaussian noise to begin with, instead of drawing it.
            output_type: "pil", "np" or "pt".
            return_dict: False returns a tuple.
            callback: called as callback(step, timestep, images [B, C, H, W]) every `callback_steps` steps.
            callback_steps: see `callback`.
            sigmas: noise levels, strictly descending from sigma_max; instead of `num_inference_steps`.
            seeds: one seed an image; the same as a list of CPU generators so seeded.

        Raises:
            UserError: (a ValueError) arguments that contradict each other or the model.
        """
        config: Any = self.unet.config
        shape = (batch_size, config.in_channels, config.sample_size or 64, config.sample_size or 64)
        kind = self._check(shape, num_inference_steps, timesteps, sigmas, latents, output_type, callback_steps)
        generator = _generators(generator, seeds, batch_size)
        device = self.device

        x = randn(shape, generator, device) if latents is None else latents.to(device, torch.float32)
        x = x * self.scheduler.init_noise_sigma
        labels = self._labels(class_labels, batch_size, generator)

        if sigmas is not None:
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        elif timesteps is not None:
            self.scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)

        steps = self.scheduler.timesteps
        with self._bar(len(steps)) as bar:
            for i, t in enumerate(steps):
                c_noise = t.float().expand(batch_size)
                output = self.unet(self.scheduler.scale_model_input(x, t), c_noise, labels)
                x = self.scheduler.step(output, t, x, generator, return_dict=False)[0]
                if bar is not None:
                    bar.update()
                if callback is not None and callback_steps and i % callback_steps == 0:
                    callback(i, t, x)

        images = _postprocess(x, kind)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _check(
        self,
        shape: tuple[int, ...],
        num_inference_steps: int | None,
        timesteps: Sequence[int] | None,
        sigmas: Sequence[float] | None,
        latents: Tensor | None,
        output_type: str | None,
        callback_steps: int | None,
    ) -> OutputType:
        if isinstance(shape[0], bool) or shape[0] < 1:
            raise UserError(f"`batch_size` is {shape[0]}; it must be a positive integer.")
        if num_inference_steps is None and timesteps is None and sigmas is None:
            raise UserError("Exactly one of `num_inference_steps` or `timesteps` must be supplied (or `sigmas`).")
        if timesteps is not None and sigmas is not None:
            raise UserError("Can only pass one of `timesteps` and `sigmas`.")
        chosen = timesteps if timesteps is not None else sigmas
        if chosen is not None and num_inference_steps not in (None, 1, len(chosen)):
            _say(f"num_inference_steps {num_inference_steps} is not used: {list(chosen)} say the steps")
        if latents is not None and tuple(latents.shape) != shape:
            raise UserError(f"The shape of latents is {tuple(latents.shape)} but is expected to be {shape}.")
        if isinstance(callback_steps, bool) or not isinstance(callback_steps, int) or callback_steps <= 0:
            raise UserError(
                f"`callback_steps` has to be a positive integer but is {callback_steps} of type {type(callback_steps)}."
            )
        if output_type not in ("pt", "np", "pil"):
            raise UserError(
                f"output_type={output_type} is not supported. Make sure to choose one of ['pt', 'np', or 'pil']"
            )
        if output_type == "pil" and shape[1] not in _PIL_CHANNELS:
            raise UserError(f"images of {shape[1]} channels are none that PIL has; give output_type='np' or 'pt'")
        return output_type

    def _labels(
        self, class_labels: Tensor | Sequence[int] | int | None, batch_size: int, generator: Generator
    ) -> Int[Tensor, " B"] | None:
        config: Any = self.unet.config
        classes = config.num_class_embeds
        if classes is None:
            return None
        if class_labels is None:
            if isinstance(generator, Sequence):
                labels = torch.cat([_randint(classes, 1, g) for g in generator])
            else:
                labels = _randint(classes, batch_size, generator)
            return labels.to(self.device)
        if isinstance(class_labels, int) and batch_size != 1:
            raise _LabelError("Batch size must be 1 if classes is an int; give a list, one class an image")
        labels = torch.as_tensor(class_labels).reshape(-1)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise UserError(f"class_labels are of type {labels.dtype}; they must be integers")
        if len(labels) != batch_size:
            raise UserError(f"{len(labels)} class_labels are given for {batch_size} images; give one an image")
        if not bool(((labels >= 0) & (labels < classes)).all()):
            raise UserError(f"class_labels {labels.tolist()}: this model has the classes 0 to {classes - 1}")
        return labels.to(self.device, torch.int64)

    def _bar(self, total: int) -> Any:
        """A tqdm bar on a terminal, where there are several steps to wait for."""
        if total == 1 and not self._progress:
            return nullcontext()
        from tqdm.auto import tqdm

        return tqdm(**({"total": total, "disable": None, "leave": False} | self._progress))


def _generators(generator: Generator, seeds: Sequence[int] | None, batch_size: int) -> Generator:
    if seeds is not None:
        if generator is not None:
            raise UserError("Can only pass one of `generator` and `seeds`.")
        generator = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    if isinstance(generator, Sequence) and len(generator) != batch_size:
        what = "seeds" if seeds is not None else "generators"
        raise UserError(
            f"You have passed a list of {what} of length {len(generator)}, but requested an effective batch size of "
            f"{batch_size}. Make sure the batch size matches the length of the {what}."
        )
    return generator


def _randint(high: int, count: int, generator: torch.Generator | None) -> Int[Tensor, " count"]:
    return torch.randint(high, (count,), generator=generator, device=None if generator is None else generator.device)


def _postprocess(x: Shaped[Tensor, "B C H W"], kind: OutputType) -> "list[Image.Image] | np.ndarray | Tensor":
    x = (x / 2 + 0.5).clamp(0, 1)
    if kind == "pt":
        return x
    array = x.cpu().permute(0, 2, 3, 1).numpy()
    if kind == "np":
        return array
    from PIL import Image

    pixels = (array * 255).round().astype("uint8")
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def _say(message: str) -> None:
    import logging

    logging.getLogger("unistep").warning(message)
