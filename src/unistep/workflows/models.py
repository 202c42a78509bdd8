"""Models by any name, and ready for a verb: `load`, and what the other verbs accept in place of a name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from unistep.arguments import plain_arguments
from unistep.errors import UserError
from unistep.formats.embedded import EMBEDDED_MODELS, embedded_at
from unistep.prepared.table import RuntimeName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unistep.data import ImageDataset
    from unistep.formats.model import LoadedModel
    from unistep.generation.images import Images
    from unistep.pipelines.consistency_model import ConsistencyModelPipeline

EMBEDDED = EMBEDDED_MODELS["mnist"].folder
EMBEDDED_TEACHER = EMBEDDED_MODELS["mnist-teacher"].folder

Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ModelSource:
    """A name of a model and the options of `load` that say which model is meant.

    Args:
        name: name of the model, as `load` takes it.
        options: keyword arguments of `load`, without `device` and `dtype`.

    Raises:
        UserError: the name is none.
    """

    name: str | os.PathLike[str] | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name is None:
            return
        if not isinstance(self.name, str | os.PathLike):
            raise UserError(f"a {type(self.name).__name__} is no model", "give a name, a loaded model or a pipeline")
        object.__setattr__(self, "name", os.path.expanduser(self.name))  # a name on the hub stays one


ModelLike: TypeAlias = Union[  # noqa: UP007 - the quoted names cannot be joined by |
    str, os.PathLike[str], "LoadedModel", "ConsistencyModelPipeline", "ModelSource", None
]
"""What the verbs take as a model: a name as `load` takes it, a loaded model, a pipeline; None is the embedded model."""

ImagesLike: TypeAlias = Union[  # noqa: UP007 - the quoted names cannot be joined by |
    str, os.PathLike[str], "ImageDataset", "Images", "Tensor"
]
"""What the verbs take as images: a dataset by its name or opened, the outcome of `sample`, uint8 [N, C, H, W]."""


@plain_arguments()
def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    runtime: RuntimeName = "eager",
    kind: Literal["consistency", "diffusion"] | None = None,
    attention_head_dim: int | None = None,
    num_heads: int | None = None,
    sample_size: int | None = None,
    weights: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    trust_code: bool = False,
) -> "LoadedModel":
    """Opens a model of any format or place.

    Args:
        model: run directory, model folder, OpenAI .pt, EDM .pkl, name of an embedded model, or owner/name on the
            Hugging Face hub; default: mnist, the embedded model of digits.
        device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
        dtype: precision that the network computes in; auto is the fastest on the device, and on a CPU fp32 for small
            networks (below 10 million parameters), whose images are then the same on every machine; fp16, which no CPU
            computes fast, is replaced there.
        runtime: runtime that computes the network on a CPU: eager, PyTorch itself; another row of `RUNTIMES`, for which
            the network is prepared once and kept in the user's cache; or auto, the fastest of those installed.
        kind: kind of the model in a .pt whose content and name leave it open.
        attention_head_dim: channels of an attention head in a .pt; default: 64, as in all published models.
        num_heads: number of attention heads at every resolution in a .pt, in place of `attention_head_dim`.
        sample_size: side of a .pt's images in pixels; default: that at which attention begins at 32 pixels.
        weights: network to take from a file that holds several, by its key or prefix; ema for averaged weights, model
            for those that are not.
        variant: variant of the weights in a model folder, as fp16.
        revision: branch, tag or commit on the hub.
        token: access token for private models on the hub; default: that of `hf auth login`, or HF_TOKEN.
        cache_dir: folder of downloads; default: the hub's own.
        local_files_only: take what was downloaded before, and download nothing.
        trust_code: run the code that an exported .pt2 holds; without it such a file is refused.

    Returns:
        The model, with its denoiser in eval mode.

    Raises:
        UserError: there is no such model, or it is damaged or of an unknown kind.

    Example:
        >>> import unistep
        >>> model = unistep.load()
        >>> model.info.kind, model.image_shape, model.num_classes
        ('consistency', (1, 28, 28), 10)
    """
    options = {
        "kind": kind,
        "attention_head_dim": attention_head_dim,
        "num_heads": num_heads,
        "sample_size": sample_size,
        "weights": weights,
        "variant": variant,
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "trust_code": trust_code or None,
    }
    asked = None if dtype == "auto" else dtype
    ready = as_model(ModelSource(model, options), device=device, dtype=asked, runtime=runtime)
    ready.log_notes()
    ready.cast()
    return ready.model


@dataclass(frozen=True)
class ReadyModel:
    """A model on its device, with the precision that it is to compute in.

    Args:
        model: the model.
        device: device of its weights.
        dtype: precision that `cast` gives it.
        notes: assumptions that were made in opening it, a line each.
        owned: whether the verb opened it, and so may cast it.
    """

    model: "LoadedModel"
    device: "torch.device"
    dtype: "torch.dtype"
    notes: tuple[str, ...]
    owned: bool

    def cast(self) -> None:
        """Casts the network of a model that was opened here; a loaded model keeps the precision it has."""
        from unistep.runtime.heap import keep_for
        from unistep.runtime.precision import set_precision

        if self.owned:
            set_precision(self.model.denoiser.network, self.dtype)
        keep_for(self.model.denoiser)

    def log_notes(self) -> None:
        """Logs the notes."""
        import logging

        for note in self.notes:
            logging.getLogger("unistep").info(note)


def as_model(
    model: ModelLike,
    *,
    device: str | None = None,
    dtype: Dtype | None = None,
    runtime: RuntimeName | None = None,
    local_rank: int = 0,
    progress: bool = True,
) -> ReadyModel:
    """Opens what a verb was given as its model, or takes it as it is.

    Args:
        model: name of a model, a loaded model, or a pipeline; None is the embedded model.
        device: device of a model that is given by name; default: cuda where there is one.
        dtype: precision of a model that is given by name; None is auto.
        runtime: runtime of a model that is given by name; None is eager.
        local_rank: number of this process on its machine, which picks its accelerator.
        progress: show a progress bar on a terminal while a model is prepared for its runtime.

    Raises:
        UserError: there is no such model; `device`, `dtype` or `runtime` beside a model that is loaded already; no such
            runtime, or one that is not installed.
    """
    import torch

    from unistep.core.denoiser import device_of
    from unistep.formats.model import LoadedModel
    from unistep.pipelines.consistency_model import ConsistencyModelPipeline
    from unistep.runtime.device import pick_device

    if isinstance(model, ConsistencyModelPipeline):
        model = model.to_model()
    if isinstance(model, LoadedModel):
        for name, value in (("device", device), ("dtype", dtype), ("runtime", runtime)):
            if value is not None:
                raise UserError(f"`{name}` is for a model given by name; give it to `unistep.load`")
        weights = max(model.denoiser.parameters(), key=lambda p: p.numel(), default=None)
        precision = torch.float32 if weights is None else weights.dtype
        return ReadyModel(model, device_of(model.denoiser), precision, (), owned=False)
    source = model if isinstance(model, ModelSource) else ModelSource(model)
    place = pick_device(device, local_rank)
    if runtime in (None, "eager"):
        loaded = open_any(source.name, place, **source.options)
        resolved, notes = _precision(dtype, place, loaded, _precisions_of(runtime))
        return ReadyModel(loaded, place, resolved, (*loaded.notes, *notes), owned=True)
    outline = open_any(source.name, "meta", **source.options)
    resolved, notes = _precision(dtype, place, outline, _precisions_of(runtime))
    prepared, note = _in_runtime(source, place, resolved, runtime, progress)
    notes += (note,) if note else ()
    if prepared is not None:
        return ReadyModel(prepared, place, resolved, (*prepared.notes, *notes), owned=runtime == "compiled")
    loaded = open_any(source.name, place, **source.options)
    return ReadyModel(loaded, place, resolved, (*loaded.notes, *notes), owned=True)


def _precision(
    dtype: Dtype | None, place: "torch.device", model: "LoadedModel", possible: Sequence[str]
) -> "tuple[torch.dtype, tuple[str, ...]]":
    """The precision of a model, one of `possible` where it is left open on a CPU, and notes on the choice."""
    import logging

    import torch

    from unistep.runtime.precision import resolve_dtype, short_name, size_of

    asked = dtype if dtype != "fp16" or place.type != "cpu" else "auto"
    replaced = asked != dtype
    resolved, why = resolve_dtype(asked or "auto", place, None if replaced else size_of(model.denoiser.network))
    if asked in (None, "auto") and resolved == torch.bfloat16 and place.type == "cpu" and "bf16" not in possible:
        resolved, why = torch.float32, "fp32: the runtime has no other"
    if replaced:
        logging.getLogger("unistep").warning("`dtype` fp16 is slow on a CPU; %s is taken", short_name(resolved))
    # Where nothing was asked for, and the reference is taken, there is nothing to say.
    silent = replaced or dtype not in (None, "auto") or (dtype is None and why.startswith("fp32"))
    return resolved, () if silent else (f"dtype auto: {why}",)


def _precisions_of(runtime: str | None) -> Sequence[str]:
    """The precisions of a runtime; of eager where it is none by name, which is refused later."""
    from unistep.prepared.table import RUNTIMES

    return RUNTIMES.get(runtime or "eager", RUNTIMES["eager"]).precisions


def _in_runtime(
    source: ModelSource, place: "torch.device", dtype: "torch.dtype", runtime: str, progress: bool
) -> "tuple[LoadedModel | None, str]":
    """The model in another runtime than eager, or None where eager is the choice; and a note."""
    import dataclasses

    from unistep.prepared.table import find_runtime

    if runtime == "compiled":
        from unistep.training.compiled import compiled

        find_runtime(runtime)
        loaded = open_any(source.name, place, **source.options)
        denoiser: Any = compiled(loaded.denoiser)
        return dataclasses.replace(loaded, denoiser=denoiser), ""
    from unistep.generation.prepare import prepared_model
    from unistep.runtime.precision import short_name

    name = EMBEDDED if source.name is None else source.name

    def opens(device: str) -> "LoadedModel":
        return open_any(name, device, **source.options)

    options = dict(source.options)
    return prepared_model(name, options, opens, runtime, short_name(dtype), device=place, progress=progress)


def opened(model: ModelLike, device: "torch.device | str" = "cpu") -> "LoadedModel":
    """Opens what a verb was given as its model for looking at it or writing it: precision and notes stay as they are.

    Args:
        model: name of a model, a loaded model, or a pipeline; None is the embedded model.
        device: device of a model that is given by name; "meta" is for looking at it, its weights are not used.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    from unistep.formats.model import LoadedModel
    from unistep.pipelines.consistency_model import ConsistencyModelPipeline

    if isinstance(model, ConsistencyModelPipeline):
        return model.to_model()
    if isinstance(model, LoadedModel):
        if str(device) != "meta":
            _log_rounded(model)
        return model
    source = model if isinstance(model, ModelSource) else ModelSource(model)
    return open_any(source.name, device, **source.options)


def _log_rounded(model: "LoadedModel") -> None:
    """Logs that weights were rounded since they were read."""
    import logging

    import torch

    from unistep.runtime.precision import short_name

    weights = max(model.denoiser.parameters(), key=lambda p: p.numel(), default=None)
    if weights is not None and weights.dtype in (torch.float16, torch.bfloat16) and weights.dtype != model.dtype:
        logging.getLogger("unistep").warning(
            'the weights are rounded to %s, as the model was opened; `unistep.load(..., dtype="fp32")` keeps them',
            short_name(weights.dtype),
        )


def name_of(model: ModelLike) -> str:
    """The name of what a verb was given as its model: the path of a loaded one."""
    name = model.name if isinstance(model, ModelSource) else model
    if name is None or isinstance(name, str | os.PathLike):
        return os.fspath(EMBEDDED if name is None else name)
    return str(getattr(name, "path", "pipeline"))


def open_any(
    name: str | os.PathLike[str] | None, device: "torch.device | str" = "cpu", **options: Any
) -> "LoadedModel":
    """Opens whatever can be opened: the embedded model (None), and all that `open_model` takes.

    Args:
        name: run directory, model folder, .pt or .pkl file, name of an embedded model, or owner/name on the hub.
        device: device of the model.
        options: keyword arguments of `unistep.formats.open.open_model`.

    Raises:
        UserError: there is no such model, or it is damaged; what to do is in the message.
    """
    from unistep.formats.open import open_model

    return open_model(EMBEDDED if name is None else name, device, **options)


def is_model(name: str) -> bool:
    """Returns whether a name means a model rather than images: by what is there, or else by its form."""
    from unistep.formats.open import names_a_model

    return names_a_model(name)


def own_schedule_file(name: str | None, model: "LoadedModel") -> Path:
    """Returns the file of a model folder that its schedules can be written to.

    Args:
        name: name of the model as the user gave it; None is the embedded model.
        model: model that was opened by that name.

    Raises:
        UserError: the model is part of the package, on the hub, or no model folder.
    """
    from unistep.formats.model_folder.schedule import schedule_file

    remedy = f"make a folder of it first: unistep convert {name or model.path} FOLDER"
    if name is None or embedded_at(model.path):
        raise UserError(f"`write`: the embedded model is part of the package and stays as it is; {remedy}")
    if not Path(name).exists():
        raise UserError(f"`write`: {name} is on the hub, not here; {remedy}")
    if not model.path.is_dir():
        raise UserError(f"`write`: {name} is a file and has no place for timesteps; {remedy}")
    return schedule_file(model.path)
