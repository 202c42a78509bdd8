"""NVIDIA's EDM networks (Karras et al. 2022, arXiv 2206.00364), and ECT's (Geng et al. 2024, arXiv 2406.14548).

    edm-cifar10-32x32-cond-vp.pkl      a teacher of EDM's
    network-snapshot-000500.pkl        what training writes: of EDM's code a teacher, of ECT's a consistency model

The file is a pickle of whole objects. It holds a dict whose entry `ema` is the network: a preconditioning (EDMPrecond,
VPPrecond, VEPrecond, iDDPMPrecond, or ECT's ECMPrecond) around a backbone (`model`: SongUNet or DhariwalUNet), each
with the arguments it was built with and its tensors. The source code in the file is not executed: see
`restricted_pickle`.

A SongUNet becomes `unistep.networks.song.SongUNet`, under the same names; a DhariwalUNet is the ADM U-Net and becomes
`unistep.networks.adm.UNet` (see `unistep.formats.edm.adm`). The variance that iDDPM networks predict beside the noise
is left out.

The noise range is that of EDM's sampler, from 80 to 0.002, as far as the network was trained on it. ECT's networks
begin at 80 as well; in evaluation their c_skip and c_out are those of EDM shifted by the file's own sigma_min, so that
f(x, sigma_min) = x. Like the samplers of both, ours do not clamp the outputs of these networks.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.core.noise import karras_sigmas
from unistep.core.parameterization import IDDPMScaling
from unistep.errors import UserError
from unistep.formats.edm.adm import adm_config, adm_shapes, adm_to_unet
from unistep.formats.edm.restricted_pickle import load_restricted
from unistep.formats.empty import without_weights
from unistep.formats.location import Location
from unistep.formats.model import LoadedModel, ModelInfo, Preconditioning, precondition
from unistep.networks.adm import UNet
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.networks.song_layers import Resample
from unistep.pickle_machine import PickledObject

_PRECONDITIONINGS: dict[str, Preconditioning] = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
    "ECMPrecond": "edm",
}
_ECT = "ECMPrecond"
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
# ECT evaluates two steps with a second level of 0.821; on the grid of this many levels one is near to it.
_ECT_LEVELS, _ECT_MIDDLE = 1000, 0.821

_NAMES = {"img_resolution": "sample_size", "label_dim": "num_class_embeds"}
# What a DhariwalUNet is without arguments; a SongUNet without them is `SongUNetConfig()`.
_ADM_DEFAULTS: dict[str, Any] = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
_SONG_ONLY = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")


def is_edm(location: Location) -> bool:
    """Returns whether a file is a pickle (since protocol 2 all begin with one byte) not written by `torch.save`."""
    return location.head.startswith(b"\x80") and not location.is_torch_file and not location.is_safetensors


def load_edm(path: Path, device: torch.device | str = "cpu", *, weights: str | None = None) -> LoadedModel:
    """Opens a network of EDM's or ECT's; nothing in the file is executed.

    Args:
        path: .pkl file.
        device: device of the model.
        weights: entry of the file that is the network; None is "ema", as in all published files.

    Raises:
        UserError: the file cannot be read, is damaged, holds objects that no network needs, or another network.
    """
    top = load_restricted(path)
    try:
        return _open(top, path, device, weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _open(top: Any, path: Path, device: torch.device | str, weights: str | None) -> LoadedModel:
    whole = _preconditioned(top, weights)
    tensors = _tensors(whole)
    backbone = whole.state["_modules"].get("model") if "_modules" in whole.state else None
    if type(backbone) is not PickledObject or backbone.class_name not in ("SongUNet", "DhariwalUNet"):
        what = backbone.class_name if type(backbone) is PickledObject else "none"
        raise UserError(f"its network is {what!r:.100}; SongUNet and DhariwalUNet are supported")
    if whole.class_name == _ECT:
        info = _ect_info(whole.state)
    else:
        info = _info(_PRECONDITIONINGS[whole.class_name], whole.state, tensors.pop("u", None))
    img_channels = _number(whole.state, "img_channels", int)
    config = _config(backbone, img_channels, info)
    named = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    network = _build(backbone.class_name, config, named, img_channels)
    dtype = next(iter(named.values())).dtype
    denoiser = precondition(network, info).to(device).eval().requires_grad_(False)
    return LoadedModel(denoiser, info, network.config, path, "EDM pickle", dtype)


def _preconditioned(top: Any, weights: str | None) -> PickledObject:
    if weights is not None and (type(top) is not dict or weights not in top):
        there = [name for name, value in top.items() if _is_network(value)] if type(top) is dict else []
        holds = f"networks only under {', '.join(map(str, there))}; choose one" if there else "one network alone"
        raise UserError(f"`weights` {weights!r:.60}: it holds {holds}" + ("" if there else "; leave it out"))
    found = top.get(weights or "ema") if type(top) is dict else top
    if type(found) is not PickledObject:
        others = [name for name, value in top.items() if _is_network(value)] if type(top) is dict else []
        if others:
            there = ", ".join(f"{name!r:.60}" for name in others[:4])
            raise UserError(f"it holds no network under {weights or 'ema'!r:.60} but {there}; choose by `weights`")
        keys = f"; it has {list(top)[:8]!r:.100}" if type(top) is dict else ""
        raise UserError(f"it holds no network of EDM's under {weights or 'ema'!r:.60}{keys}")
    if found.class_name not in _PRECONDITIONINGS or type(found.state) is not dict:
        known = ", ".join(_PRECONDITIONINGS)
        raise UserError(f"it holds a {found.class_name!r:.100}; supported are {known}")
    return found


def _is_network(value: Any) -> bool:
    return type(value) is PickledObject and value.class_name in _PRECONDITIONINGS


def _number(state: dict[str, Any], name: str, kind: type = float) -> Any:
    value = state.get(name)
    if type(value) is int or (kind is float and type(value) is float and not math.isnan(value)):
        return kind(value)
    raise UserError(f"{name} is {_shown(value)}; it must be a number")


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if type(value) in (int, float, str, bool) or value is None else f"a {type(value).__name__}"


def _info(kind: Preconditioning, state: dict[str, Any], u: Tensor | None) -> ModelInfo:
    constants = {"edm": ("sigma_data",), "vp": ("beta_d", "beta_min", "M"), "ve": (), "iddpm": ("C_1", "C_2", "M")}
    own: dict[str, Any] = {name: _number(state, name, int if name == "M" else float) for name in constants[kind]}
    own["sigma_min"] = max(_SIGMA_MIN, _number(state, "sigma_min"))
    own["sigma_max"] = min(_SIGMA_MAX, _number(state, "sigma_max"))
    info = ModelInfo(kind="diffusion", preconditioning=kind, noise_embedding="edm", clip=False, **own)
    if kind == "iddpm":
        # Rounding of the machine that wrote the file shows in the lowest levels, in the third digit.
        levels = IDDPMScaling(info.C_1, info.C_2, info.M).levels()
        if u is None or u.shape != levels.shape or not torch.allclose(u.float(), levels, rtol=0.01, atol=1e-4):
            raise UserError("its noise levels u are not those of C_1, C_2 and M; the file is damaged")
    return info


def _ect_info(state: dict[str, Any]) -> ModelInfo:
    """The facts about a consistency model of ECT's; the grid is ours, as ECT names noise levels directly."""
    sigma_min, sigma_max = _number(state, "sigma_min"), min(_SIGMA_MAX, _number(state, "sigma_max"))
    info = ModelInfo(
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        sigma_data=_number(state, "sigma_data"),
        num_train_timesteps=_ECT_LEVELS,
        noise_embedding="edm",
        clip=False,
        method="easy consistency tuning (ECT)",
    )
    if not sigma_min < _ECT_MIDDLE < sigma_max:
        return info
    levels = karras_sigmas(_ECT_LEVELS, sigma_min, sigma_max, info.rho)
    return dataclasses.replace(info, timesteps=(0, int((levels - _ECT_MIDDLE).abs().argmin())))


def _tensors(whole: PickledObject) -> dict[str, Tensor]:
    """All parameters and buffers by their names."""
    found: dict[str, Tensor] = {}
    todo = [("", whole)]
    visited = 0
    while todo:
        prefix, module = todo.pop()
        visited += 1
        # A file can make a module its own child, or show one in many places.
        if visited + len(todo) + len(found) > 50_000 or prefix.count(".") > 8:
            raise UserError("its modules are nested without end; the file is damaged")
        groups = [module.state.get(group, {}) for group in ("_parameters", "_buffers", "_modules")]
        if not all(type(group) is dict and all(type(name) is str for name in group) for group in groups):
            raise UserError(f"module {prefix!r:.100} has no dicts of parameters, buffers and modules")
        parameters, buffers, modules = groups
        for name, tensor in [*parameters.items(), *buffers.items()]:
            if tensor is not None:
                found[prefix + name] = _checked(prefix + name, tensor)
        for name, child in modules.items():
            if child is None:
                continue
            if type(child) is not PickledObject or type(child.state) is not dict:
                raise UserError(f"module {prefix + name!r:.100} is a {type(child).__name__}; the file is damaged")
            todo.append((f"{prefix}{name}.", child))
    return found


def _checked(name: str, tensor: Any) -> Tensor:
    if type(tensor) is not Tensor or not tensor.is_floating_point():
        what = str(tensor.dtype) if type(tensor) is Tensor else f"a {type(tensor).__name__}"
        raise UserError(f"tensor {name!r:.100} is {what}; weights must be floating-point")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"tensor {name!r:.100} has values that are not finite; the file is damaged")
    return tensor


def _config(backbone: PickledObject, img_channels: int, info: ModelInfo) -> SongUNetConfig:
    """The arguments of a backbone; the two kinds share names and ranges, a DhariwalUNet has fewer."""
    state = backbone.state if type(backbone.state) is dict else {}
    kwargs = state.get("_init_kwargs")
    if type(kwargs) is not dict or state.get("_init_args", ()) not in ((), []):
        raise UserError("the arguments that its network was built with are missing, or not given by name")
    adm = backbone.class_name == "DhariwalUNet"
    values: dict[str, Any] = dict(_ADM_DEFAULTS) if adm else {}
    fields = {field.name: field for field in dataclasses.fields(SongUNetConfig)}
    for given, value in kwargs.items():
        name = _NAMES.get(given, given)
        if name not in fields or (given in _NAMES.values()) or (adm and name in _SONG_ONLY):
            raise UserError(f"argument {given!r:.100} of its {backbone.class_name} is unknown: a modified network")
        values[name] = _typed(given, value, fields[name].default)
    values["num_class_embeds"] = values.get("num_class_embeds") or None
    for name in ("sample_size", "in_channels", "out_channels"):
        if name not in values:
            raise UserError(f"its network was built without {name}; the file is damaged")
    try:
        config = SongUNetConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from None
    expected = 2 * img_channels if info.preconditioning == "iddpm" else img_channels
    if (config.in_channels, config.out_channels) != (img_channels, expected):
        raise UserError(
            f"its network has {config.in_channels} channels in and {config.out_channels} out, "
            f"for images of {img_channels} they are {img_channels} and {expected}"
        )
    return config


def _typed(name: str, value: Any, default: Any) -> Any:
    """`value` in the type of a field's default; None stands for a number."""
    kind = int if default is None else type(default)
    if kind is tuple and type(value) in (list, tuple) and all(type(v) is int for v in value):
        return tuple(value)
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise UserError(f"argument {name} is {_shown(value)}; it must be {'integers' if kind is tuple else kind.__name__}")


def _build(class_name: str, arch: SongUNetConfig, tensors: dict[str, Tensor], img_channels: int) -> SongUNet | UNet:
    """The network with its weights; of its output channels the first `img_channels`."""
    song = class_name == "SongUNet"
    _check(tensors, _song_shapes(arch) if song else adm_shapes(arch), arch.resample_filter)
    if arch.out_channels > img_channels:
        heads = ("aux_conv.weight", "aux_conv.bias", "out_conv.weight", "out_conv.bias")
        tensors = {name: t[:img_channels].clone() if name.endswith(heads) else t for name, t in tensors.items()}
        arch = dataclasses.replace(arch, out_channels=img_channels)
    with without_weights():
        network = SongUNet(arch) if song else UNet(adm_config(arch))
    state = tensors if song else adm_to_unet(tensors, arch)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return network


def _song_shapes(config: SongUNetConfig) -> dict[str, tuple[int, ...]]:
    with without_weights():
        return {name: tuple(tensor.shape) for name, tensor in SongUNet(config).state_dict().items()}


def _check(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], taps: tuple[int, ...]) -> None:
    """Refuses tensors that are not those expected by name and shape, and filters other than the config's."""
    for name in sorted(tensors.keys() ^ expected.keys()):
        word = "lacks" if name in expected else "has the unexpected"
        raise UserError(f"it {word} tensor {name!r:.100}: a modified network, or a damaged file")
    taps_filter = Resample("up", taps).resample_filter
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise UserError(f"tensor {name} has shape {list(tensor.shape)}, expected {list(expected[name])}")
        if name.endswith("resample_filter") and not torch.allclose(tensor.float(), taps_filter, atol=1e-6):
            raise UserError(f"tensor {name} is not the filter of taps {list(taps)} that the network was built with")
