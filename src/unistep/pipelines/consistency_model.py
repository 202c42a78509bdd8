"""`ConsistencyModelPipeline`: a drop-in for diffusers' class of that name.

    pipe = ConsistencyModelPipeline.from_pretrained("openai/diffusers-cd_cat256_l2")
    pipe(num_inference_steps=1).images[0].save("cat.png")
    pipe(num_inference_steps=None, timesteps=[18, 0]).images[0]

Calls, meanings and errors are those of diffusers 0.42; the same generator gives the same images. Differences:

- every format that this package reads can be opened, run directories too;
- `sigmas` gives noise levels directly, `seeds` one seed an image; any number of channels;
- labels that are not given are drawn from the generator, so that a seed fixes them as well;
- in half precision noise, scalings and images stay fp32, as do the time embedding and the output head;
- a schedule that does not begin at sigma_max is refused;
- `unet` is this package's network, called as unet(x, c_noise, class_labels).
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, image_shape, precondition
from unistep.pipelines.arguments import check_call, class_of_each, generators
from unistep.pipelines.output import ImagePipelineOutput, postprocess
from unistep.pipelines.scheduler import CMStochasticIterativeScheduler, Generator, randn
from unistep.runtime.precision import resolve_dtype, set_precision

_log = logging.getLogger("unistep")
_SHARED = ("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps", "noise_embedding")


class ConsistencyModelPipeline:
    """A consistency model and its scheduler.

    Args:
        unet: network, whose `config` holds size, channels and classes.
        scheduler: noise levels and steps.
        info: all other settings of the model's files, which are kept when the pipeline is saved; None is the default.
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
                or "auto", which logs its choice; fp32 if not given.
            variant: variant of the weights in a model folder, as "fp16".
            revision: branch, tag or commit on the hub.
            token: access token for private models on the hub.
            cache_dir: folder of downloads.
            local_files_only: take the model from the cache, and download nothing.
            device: device of the model; CPU if not given.
            kind: "consistency" for a .pt with the name of a diffusion model.
            attention_head_dim: channels of an attention head in a .pt; 64 if not given.
            sample_size: side of a .pt's images in pixels; that at which attention begins at 32 pixels if not given.

        Raises:
            UserError: there is no such model, it is damaged, or it is a diffusion model.
        """
        from unistep.formats.open import open_model

        if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
            raise UserError(f"`torch_dtype` {torch_dtype} and `dtype` {dtype} are two names of one option; give one")
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
        """Makes a pipeline of an opened consistency model.

        Raises:
            UserError: `model` is a diffusion model.
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

        Args:
            save_directory: the folder; an older model folder is replaced when the new one is complete.
            variant: word for the weights' file name, as "fp16"; None for the plain name.
            card: content of README.md; empty for a card without results.

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
        card = card or plain_card(path.name, info, network=network.config)
        save_model(path, network, info, card=card, dtype=self.dtype, variant=variant)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Saves the pipeline and uploads the folder to the hub.

        Args:
            repo_id: owner/name on the hub.
            token: access token with write permission; None is the stored one.
            private: whether a new repository is private; None is the owner's default.
            commit_message: message of the commit.

        Returns:
            The model's page.

        Raises:
            UserError: no network, no permission, or not a name of the hub.
        """
        from tempfile import TemporaryDirectory

        from unistep.formats.hub.push import push_folder

        with TemporaryDirectory() as folder:
            path = Path(folder) / repo_id.rsplit("/", 1)[-1]
            self.save_pretrained(path)
            return push_folder(path, repo_id, token=token, private=private, commit_message=commit_message)

    # ------------------------------------------------------------------------------------------ place and precision

    @property
    def components(self) -> dict[str, Any]:
        """Network and scheduler by their names."""
        return {"unet": self.unet, "scheduler": self.scheduler}

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's blocks."""
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
            raise UserError(
                f"`device` {device}: {str(error).splitlines()[0]}; give one that this machine has"
            ) from None
        if dtype is not None:
            chosen, why = resolve_dtype(dtype, self.device)
            if dtype == "auto":
                _log.warning("dtype auto: %s", why)
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
            batch_size: number of images.
            class_labels: class of each image [B], or one class of a single image; drawn if not given; ignored by
                unconditional models.
            num_inference_steps: number of network evaluations, evenly spaced over the grid.
            timesteps: indices of the grid in descending order that end with 0 (sigma_max), as [18, 0]; instead of
                `num_inference_steps`.
            generator: generator of noise and labels, for all images or one an image; None is torch's default one.
            latents: unit Gaussian noise [B, C, H, W] to begin with; drawn if not given.
            output_type: kind of the images: "pil", "np" or "pt".
            return_dict: whether an `ImagePipelineOutput` is returned; otherwise a tuple.
            callback: function called as callback(step, timestep, images [B, C, H, W]) every `callback_steps` steps.
            callback_steps: number of steps from one call of `callback` to the next.
            sigmas: noise levels, strictly descending from sigma_max; instead of `num_inference_steps`.
            seeds: seed of each image; the same as a list of CPU generators with these seeds.

        Returns:
            The images.

        Raises:
            UserError: (a ValueError) arguments that contradict each other or the model.
        """
        config: Any = self.unet.config
        shape = (batch_size, *image_shape(config))
        kind = check_call(shape, num_inference_steps, timesteps, sigmas, latents, output_type, callback_steps)
        generator = generators(generator, seeds, batch_size)
        device = self.device

        # Of this call alone: others may run in other threads. The public one shows where the latest call stands.
        scheduler = self.scheduler.fork()
        x = randn(shape, generator, device) if latents is None else latents.to(device, torch.float32)
        x = x * scheduler.init_noise_sigma
        labels = class_of_each(class_labels, config.num_class_embeds, batch_size, generator, device)

        if sigmas is not None:
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        elif timesteps is not None:
            scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)

        steps = scheduler.timesteps
        with self._bar(len(steps)) as bar:
            for i, t in enumerate(steps):
                c_noise = t.float().expand(batch_size)
                output = self.unet(scheduler.scale_model_input(x, t), c_noise, labels)
                x = scheduler.step(output, t, x, generator, return_dict=False)[0]
                self.scheduler.adopt(scheduler)
                if bar is not None:
                    bar.update()
                if callback is not None and callback_steps and i % callback_steps == 0:
                    callback(i, t, x)

        images = postprocess(x, kind)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _bar(self, total: int) -> Any:
        """Returns a tqdm bar for several steps, which shows on terminals alone."""
        if total == 1 and not self._progress:
            return nullcontext()
        from tqdm.auto import tqdm

        return tqdm(**({"total": total, "disable": None, "leave": False} | self._progress))
