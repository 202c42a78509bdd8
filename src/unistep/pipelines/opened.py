"""A pipeline's way from files: `from_pretrained`, `from_pipe`, `download`."""

import inspect
import logging
import os
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.formats.exported.model import check_weights
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.pipelines.numbers import as_device
from unistep.pipelines.options import DOWNLOADING, OPENING, Download, check_options
from unistep.pipelines.parts import SHARED
from unistep.pipelines.precision import as_precision, suggest_auto
from unistep.pipelines.runtimes import compiled, in_runtime
from unistep.pipelines.scheduler import CMStochasticIterativeScheduler
from unistep.pipelines.switches import SwitchedPipeline
from unistep.prepared.network import PreparedNetwork
from unistep.prepared.table import RuntimeName
from unistep.runtime.device import pick_device

# `Self` is beyond the run-time check of types in the tests.
_Pipeline = TypeVar("_Pipeline", bound="OpenedPipeline")
_log = logging.getLogger("unistep")
_SEVERAL = ("balanced", "balanced_low_0", "sequential", "disk")
_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".bin")


class OpenedPipeline(SwitchedPipeline):
    """The part of a pipeline that opens it."""

    @classmethod
    def from_pretrained(
        cls: type[_Pipeline],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool | None = False,
        force_download: bool | None = False,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool | None = None,
        disable_mmap: bool | None = False,
        device_map: Any = None,
        device: torch.device | str | int | None = None,
        scheduler: Any = None,
        unet: Any = None,
        kind: Literal["consistency", "diffusion"] | None = None,
        attention_head_dim: int | None = None,
        num_heads: int | None = None,
        sample_size: int | None = None,
        weights: str | None = None,
        runtime: RuntimeName = "eager",
        **options: Any,
    ) -> _Pipeline:
        """Opens a consistency model of any format that `unistep.load` opens.

        Args:
            pretrained_model_name_or_path: model folder, run directory, OpenAI .pt, or owner/name on the hub.
            torch_dtype, dtype: precision of the blocks, two names of one thing: a torch dtype, its name, "fp32",
                "fp16", "bf16", a dict with one for "unet" or as "default", or "auto", which logs its choice; fp32 if
                not given.
            variant: variant of the weights in a model folder, as "fp16".
            revision: branch, tag or commit on the hub.
            token: access token for private models on the hub.
            cache_dir: folder of downloads.
            local_files_only: take the model from the cache, and download nothing.
            force_download: fetch a model of the hub again, if the cache holds it; without effect on others.
            use_safetensors: whether the weights must be safetensors; None takes what there is, those first.
            low_cpu_mem_usage: without effect: weights are mapped, and never initialised first.
            disable_mmap: whether weights are read into memory at once instead of being mapped.
            device_map, device: device of the model; "auto" is an accelerator where there is one; CPU if not given.
            scheduler: scheduler instead of the model's.
            unet: network instead of the model's.
            kind: "consistency" for a .pt with the name of a diffusion model.
            attention_head_dim: channels of an attention head in a .pt; 64 if not given.
            num_heads: number of attention heads at every resolution in a .pt, in place of `attention_head_dim`.
            sample_size: side of a .pt's images in pixels; that at which attention begins at 32 pixels if not given.
            weights: network to take from a file that holds several, as "ema".
            runtime: runtime that computes the network on a CPU, as of `unistep.load`: "eager" is PyTorch itself, "auto"
                the fastest of those installed.
            options: diffusers' other options, where they ask for nothing special; see docs/diffusers.md.

        Raises:
            UserError: there is no such model, it is damaged, or it is a diffusion model; an option that cannot be
                honoured.
            TypeError: an option that does not exist.
        """
        from unistep.formats.open import open_model

        # All options before the files, which may be large, or far away.
        check_options("from_pretrained", options, OPENING, _names(cls))
        precision = _precision(torch_dtype, dtype)
        place = _place(device_map, device)
        name = os.fspath(pretrained_model_name_or_path)
        source = os.path.expanduser(name)  # a name on the hub stays one
        if force_download and not user_path(name).exists():
            download = Download(revision, token, cache_dir, local_files_only, True, variant=variant)
            source = os.fspath(download.folder(name))
        asked = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "variant": variant,
            "kind": kind,
            "attention_head_dim": attention_head_dim,
            "num_heads": num_heads,
            "sample_size": sample_size,
            "weights": weights,
        }
        if unet is None:
            model = in_runtime(source, asked, runtime, precision, place) or open_model(source, "cpu", **asked)
        elif runtime == "eager":
            model = open_model(source, "meta", **asked)
        else:
            raise UserError("`runtime` is for the model's own network; give one of it and `unet`")
        if unet is None and use_safetensors is not None:
            _check_weights(model, variant, use_safetensors)
        pipe = cls.from_model(model)
        pipe.name_or_path = name
        if scheduler is not None:
            pipe.scheduler = scheduler
            _keep_embedding(pipe, model.info)
        if unet is not None:  # its precision is its owner's business
            pipe.unet = unet
            return pipe if device_map is None and device is None else pipe.to(place)
        if disable_mmap:
            for tensor in (*pipe.unet.parameters(), *pipe.unet.buffers()):
                tensor.data = tensor.data.clone()
        if torch_dtype is None and dtype is None:
            suggest_auto(place, pipe.unet)
        if isinstance(pipe.unet, PreparedNetwork):  # its precision was chosen when it was prepared
            return pipe
        pipe.to(place, precision)
        if runtime == "compiled":
            pipe.unet = compiled(pipe.unet)
        return pipe

    @classmethod
    def from_model(cls: type[_Pipeline], model: LoadedModel) -> _Pipeline:
        """Makes a pipeline of an opened consistency model.

        Raises:
            UserError: `model` is a diffusion model, or an exported program.
        """
        if model.info.kind != "consistency":
            raise UserError(
                f"{model.path} is a diffusion model, which one evaluation does not sample; "
                "distill it, or sample it step by step: unistep sample"
            )
        check_weights(model)
        shared = {name: getattr(model.info, name) for name in SHARED}
        scheduler = CMStochasticIterativeScheduler(**shared, clip_denoised=model.info.clip)
        return cls(model.denoiser.network, scheduler, model.info)

    @classmethod
    def from_pipe(
        cls: type[_Pipeline], pipeline: Any, *, torch_dtype: Any = None, dtype: Any = None, **options: Any
    ) -> _Pipeline:
        """Makes a pipeline of the parts of another, which are shared and not copied.

        Args:
            pipeline: pipeline of this class, or of diffusers'.
            torch_dtype, dtype: precision of the blocks, of both pipelines; None leaves it.
            options: `unet` and `scheduler` in place of those of `pipeline`; diffusers' other options, where they ask
                for nothing special.

        Raises:
            UserError: parts of another kind; an option that cannot be honoured.
            TypeError: an option that does not exist.
        """
        replaced = {name: options.pop(name) for name in ("unet", "scheduler") if name in options}
        check_options("from_pipe", options, OPENING, ("unet", "scheduler", "torch_dtype", "dtype"))
        components: Any = getattr(pipeline, "components", {})
        parts = {name: components.get(name) for name in ("unet", "scheduler")} | replaced
        precision = None if torch_dtype is None and dtype is None else _precision(torch_dtype, dtype)
        pipe = cls(**parts, info=getattr(pipeline, "info", None))
        pipe.name_or_path = getattr(pipeline, "name_or_path", None)
        return pipe if precision is None else pipe.to(dtype=precision)

    @classmethod
    def download(cls, pretrained_model_name: str, use_safetensors: bool | None = None, **options: Any) -> str:
        """Fetches a model of the hub into the cache.

        Args:
            pretrained_model_name: owner/name.
            use_safetensors: whether the weights must be safetensors; None takes what there is, those first.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `variant`; diffusers' other options, where
                they ask for nothing special.

        Returns:
            The folder in the cache.

        Raises:
            UserError: the model cannot be had; an option that cannot be honoured.
            TypeError: an option that does not exist.
        """
        from unistep.formats.model_folder.weights import find_weights

        download, _ = Download.of("download", options, DOWNLOADING)
        folder = download.folder(pretrained_model_name)
        if use_safetensors is not None:
            _check_suffix(find_weights(folder, download.variant)[0], use_safetensors)
        return str(folder)


def _names(cls: type[OpenedPipeline]) -> tuple[str, ...]:
    return tuple(inspect.signature(cls.from_pretrained).parameters)


def _precision(torch_dtype: Any, dtype: Any) -> Any:
    """The one precision of two names, fp32 where there is none."""
    given = {"torch_dtype": torch_dtype, "dtype": dtype}
    chosen = {name: as_precision(value, name) for name, value in given.items() if value is not None}
    if len(set(chosen.values())) > 1:
        raise UserError(f"`torch_dtype` {torch_dtype} and `dtype` {dtype} are two names of one option; give one")
    return next(iter(chosen.values()), torch.float32)


def _place(device_map: Any, device: Any) -> torch.device:
    """The device of a model, CPU where none is given."""
    if device_map is None:
        return as_device("cpu" if device is None else device)
    if device is not None:
        raise UserError("`device_map` and `device` are two names of one option here; give one")
    devices = set(map(str, device_map.values())) if isinstance(device_map, dict) else {str(device_map)}
    if len(devices) != 1 or devices & set(_SEVERAL):
        raise UserError(f"`device_map` {device_map}: the model is one network on one device; give cpu, cuda or auto")
    (name,) = devices
    return pick_device(None) if name == "auto" else as_device(int(name) if name.isdigit() else name, "device_map")


def _check_weights(model: LoadedModel, variant: str | None, use_safetensors: bool) -> None:
    """Refuses weights of another kind than `use_safetensors` asks for."""
    from unistep.formats.model_folder.weights import find_weights

    if (model.path / OpenedPipeline.config_name).exists():
        _check_suffix(find_weights(model.path, variant)[0], use_safetensors)
    elif model.path.suffix in _PICKLES:
        _check_suffix(model.path, use_safetensors)


def _check_suffix(path: Path, use_safetensors: bool) -> None:
    if use_safetensors != (path.suffix not in _PICKLES):
        kind = "are no safetensors" if use_safetensors else "are safetensors"
        raise UserError(
            f"`use_safetensors={use_safetensors}`: the weights {path} {kind}; leave it out, none are executed"
        )


def _keep_embedding(pipe: OpenedPipeline, info: ModelInfo) -> None:
    """Gives a scheduler from elsewhere the form of the noise level that the network was trained with."""
    if pipe.scheduler.config.noise_embedding != info.noise_embedding:
        pipe.scheduler = CMStochasticIterativeScheduler.from_config(
            pipe.scheduler.config, noise_embedding=info.noise_embedding
        )
        _log.warning("the network takes the noise level as %s; the scheduler is set to it", info.noise_embedding)
