import collections
import functools
import importlib.util
import math
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

import unistep
from unistep.core.parameterization import EDMScaling, IDDPMScaling, VEScaling, VPScaling
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom, image_seed
from unistep.errors import UserError
from unistep.formats.edm.adm import adm_config, adm_shapes
from unistep.formats.edm.file import load_edm
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.networks.adm import UNet
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.samplers.consistency import sigmas_from_indices
from unistep.samplers.heun import heun

SONG: dict[str, Any] = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 5,
    "augment_dim": 9,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "channel_mult_emb": 4,
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.13,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
NCSNPP = SONG | {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM: dict[str, Any] = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 5,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.1,
}
EDM = {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.4}
VP = {"sigma_min": 0.001, "sigma_max": 152.0, "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}
VE = {"sigma_min": 0.02, "sigma_max": 100.0}
IDDPM = {"sigma_min": 0.0064, "sigma_max": 20291.0, "C_1": 0.001, "C_2": 0.008, "M": 1000}


@pytest.fixture(scope="module")
def reference() -> types.ModuleType:
    path = Path(__file__).parents[1] / "networks" / "edm_reference.py"
    spec = importlib.util.spec_from_file_location("edm_reference", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------- files as EDM writes them


def reconstruct(meta: Any) -> Any:
    raise AssertionError("the reader calls nothing that the file names")


class EasyDict(dict):
    __module__ = "dnnlib.util"


reconstruct.__module__ = "torch_utils.persistence"
reconstruct.__name__ = reconstruct.__qualname__ = "_reconstruct_persistent_obj"


class Persistent(nn.Module):
    """An object that pickles as NVIDIA's persistent classes do: their source, name and `__dict__`."""

    source = "raise AssertionError('the source was executed')"

    def __init__(self, class_name: str, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)
        self.pickled_as = class_name

    def __reduce__(self) -> Any:
        state = vars(self).copy()
        name = state.pop("pickled_as")
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": name, "state": state}
        return reconstruct, (meta,)


def network(class_name: str, kwargs: dict[str, Any], weights: dict[str, Tensor]) -> Persistent:
    """The object tree of a network, from its weights by their names."""
    root = Persistent(class_name, _init_args=(), _init_kwargs=kwargs, training=False)
    for name, tensor in weights.items():
        *parents, leaf = name.split(".")
        module: nn.Module = root
        for i, parent in enumerate(parents):
            if parent not in module._modules:
                layer = {
                    "_init_args": (),
                    "_init_kwargs": {"skip_scale": np.sqrt(0.5), "init": EasyDict(init_weight=0)},
                }
                module._modules[parent] = (
                    nn.ModuleDict() if parent in ("enc", "dec") else Persistent(f"Layer{i}", **layer)
                )
            module = module._modules[parent]  # pyright: ignore
        if leaf in ("resample_filter", "freqs"):
            module.register_buffer(leaf, tensor)
            module.register_parameter("bias", module._parameters.get("bias"))
        else:
            module.register_parameter(
                leaf, nn.Parameter(tensor, requires_grad=False) if tensor.is_floating_point() else None
            )
            if not tensor.is_floating_point():
                module._parameters[leaf] = tensor  # pyright: ignore
            if "resample_filter" not in module._buffers:
                module.register_buffer("resample_filter", None)
    return root


def write(path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pickles with the names that EDM's files have, for which modules must be there."""
    for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for named in (EasyDict, reconstruct):
        monkeypatch.setattr(sys.modules[named.__module__], named.__name__, named, raising=False)
    path.write_bytes(pickle.dumps(content))
    return path


def whole(
    precond: str, attributes: dict[str, Any], class_name: str, kwargs: dict[str, Any], weights: dict[str, Tensor]
) -> Persistent:
    """A preconditioning around a network."""
    own = {"img_resolution": 16, "img_channels": 3, "label_dim": 5, "use_fp16": True, **attributes}
    object_ = Persistent(precond, _init_args=(), _init_kwargs=own | {"model_type": class_name}, **own)
    object_._modules["model"] = network(class_name, kwargs, weights)
    return object_


@pytest.fixture
def edm_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def make(*args: Any, path: Path = tmp_path / "edm.pkl", **more: Any) -> Path:
        ema = whole(*args)
        for name, tensor in more.items():
            ema.register_buffer(name, tensor)
        content = {
            "ema": ema,
            "loss_fn": Persistent("EDMLoss", P_mean=-1.2, P_std=1.2, sigma_data=0.5),
            "augment_pipe": Persistent("AugmentPipe", p=0.12, xflip=1e8),
            "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", use_labels=True),
        }
        return write(path, content, monkeypatch)

    return make


def song_config(kwargs: dict[str, Any]) -> SongUNetConfig:
    names = {"img_resolution": "sample_size", "label_dim": "num_class_embeds"}
    values = {names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    return SongUNetConfig(**values | {"num_class_embeds": values.get("num_class_embeds") or None})


def randomised(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights that keep the size of what passes through them; filters and frequencies as they are."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)
        for name, shape in shapes.items()
    }


def song_weights(kwargs: dict[str, Any]) -> dict[str, Tensor]:
    return _song_weights(song_config(kwargs))


@functools.cache
def _song_weights(config: SongUNetConfig) -> dict[str, Tensor]:
    state = SongUNet(config).state_dict()
    weights = randomised({name: tuple(tensor.shape) for name, tensor in state.items()})
    return weights | {name: tensor for name, tensor in state.items() if name.endswith("resample_filter")}


def adm_weights(args: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a DhariwalUNet, written down from its definition and not from ours."""
    width, emb, size = args["model_channels"], 4 * args["model_channels"], args["img_resolution"]
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def block(name: str, c_in: int, c_out: int, attention: bool = False) -> None:
        layer(f"{name}.norm0", c_in)
        layer(f"{name}.conv0", c_out, c_in, 3, 3)
        layer(f"{name}.affine", 2 * c_out, emb)
        layer(f"{name}.norm1", c_out)
        layer(f"{name}.conv1", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.skip", c_out, c_in, 1, 1)
        if attention:
            layer(f"{name}.norm2", c_out)
            layer(f"{name}.qkv", 3 * c_out, c_out, 1, 1)
            layer(f"{name}.proj", c_out, c_out, 1, 1)
        if name.endswith(("_down", "_up")):
            shapes[f"{name}.conv0.resample_filter"] = shapes[f"{name}.skip.resample_filter"] = (1, 1, 2, 2)

    layer("map_layer0", emb, width)
    layer("map_layer1", emb, emb)
    if args["label_dim"]:
        layer("map_label", emb, args["label_dim"], bias=False)
    if args["augment_dim"]:
        layer("map_augment", width, args["augment_dim"], bias=False)
    levels = [(f"{size >> i}x{size >> i}", width * m, size >> i) for i, m in enumerate(args["channel_mult"])]
    layer(f"enc.{levels[0][0]}_conv", width, args["in_channels"], 3, 3)
    skips, c = [width], width
    for i, (name, out, side) in enumerate(levels):
        if i:
            block(f"enc.{name}_down", c, c)
            skips.append(c)
        for j in range(args["num_blocks"]):
            block(f"enc.{name}_block{j}", c, out, side in args["attn_resolutions"])
            c = out
            skips.append(c)
    for i, (name, out, side) in reversed(list(enumerate(levels))):
        if i == len(levels) - 1:
            block(f"dec.{name}_in0", c, c, True)
            block(f"dec.{name}_in1", c, c)
        else:
            block(f"dec.{name}_up", c, c)
        for j in range(args["num_blocks"] + 1):
            block(f"dec.{name}_block{j}", c + skips.pop(), out, side in args["attn_resolutions"])
            c = out
    layer("out_norm", c)
    layer("out_conv", args["out_channels"], c, 3, 3)
    weights = randomised(shapes)
    return {name: torch.full_like(t, 0.25) if name.endswith("resample_filter") else t for name, t in weights.items()}


# ---------------------------------------------------------------------------------------- the networks

LABELS = torch.tensor([4, 0])
SIGMA = torch.tensor([0.3, 30.0])


@pytest.fixture
def x_t(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=generator) * SIGMA[:, None, None, None]


@pytest.mark.parametrize("kwargs", [SONG, NCSNPP, NCSNPP | {"decoder_type": "skip"}], ids=["ddpmpp", "ncsnpp", "skip"])
@torch.no_grad()
def test_song_networks(kwargs: dict[str, Any], edm_file: Any, reference: Any, x_t: Tensor):
    weights = song_weights(kwargs)
    model = load_edm(edm_file("EDMPrecond", EDM, "SongUNet", kwargs, weights))
    assert model.config == song_config(kwargs)
    assert isinstance(model.denoiser.network, SongUNet)
    state = model.denoiser.network.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)

    sigma = SIGMA[:, None, None, None]
    c_in, sd = (sigma**2 + 0.4**2) ** -0.5, 0.4
    output = reference.song(weights, kwargs, c_in * x_t, SIGMA.log() / 4, torch.eye(5)[LABELS])
    expected = sd**2 / (sigma**2 + sd**2) * x_t + sigma * sd * c_in * output
    torch.testing.assert_close(model.denoiser(x_t, SIGMA, LABELS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"label_dim": 0, "augment_dim": 0, "num_blocks": 2, "attn_resolutions": [16]}])
@torch.no_grad()
def test_adm_networks(changes: dict[str, Any], edm_file: Any, reference: Any, x_t: Tensor):
    kwargs = ADM | changes
    weights = adm_weights(kwargs)
    model = load_edm(edm_file("EDMPrecond", EDM, "DhariwalUNet", kwargs, weights))
    assert isinstance(model.denoiser.network, UNet)
    assert model.num_classes == kwargs["label_dim"] and model.image_shape == (3, 16, 16)
    labels, one_hot = (LABELS, torch.eye(5)[LABELS]) if kwargs["label_dim"] else (None, None)
    c_noise = torch.tensor([-1.5, 1.1])
    expected = reference.dhariwal(weights, kwargs, x_t, c_noise, one_hot)
    assert expected.std() > 0.1
    output = model.denoiser.network(x_t, c_noise, labels)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    save(model.denoiser.network.state_dict())  # which refuses tensors that share memory


def test_shapes_of_adm_are_those_of_its_definition():
    assert adm_shapes(song_config(ADM)) == {name: tuple(tensor.shape) for name, tensor in adm_weights(ADM).items()}


def test_imagenet_64():
    arch = song_config({"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000,
                        "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
                        "attn_resolutions": [32, 16, 8]})  # fmt: skip
    with torch.device("meta"):
        unet = UNet(adm_config(arch))
    assert sum(p.numel() for p in unet.parameters()) == 295_899_267
    shapes = adm_shapes(arch)
    filters = [name for name in shapes if name.endswith("resample_filter")]
    assert sum(math.prod(shape) for shape in shapes.values()) == 295_899_267 + 4 * len(filters)
    assert len(filters) == 12


def test_arguments_left_out_have_the_defaults_of_their_class(edm_file: Any):
    for defaults, class_name, weights in (
        ({"num_blocks": 4, "dropout": 0.1, "attn_resolutions": [16]}, "SongUNet", song_weights),
        ({"num_blocks": 3, "dropout": 0.1, "attn_resolutions": [32, 16, 8]}, "DhariwalUNet", adm_weights),
    ):
        full = (SONG if class_name == "SongUNet" else ADM) | defaults | {"channel_mult": [1]}
        given = {name: value for name, value in full.items() if name not in defaults}
        config = load_edm(edm_file("EDMPrecond", EDM, class_name, given, weights(full))).config
        expected = song_config(full)
        assert config == (expected if class_name == "SongUNet" else adm_config(expected))


# ---------------------------------------------------------------------------------------- the preconditionings

NOISE_RANGES = {"EDMPrecond": (0.002, 80.0), "VPPrecond": (0.002, 80.0), "VEPrecond": (0.02, 80.0),
                "iDDPMPrecond": (0.0064, 80.0)}  # fmt: skip


@pytest.mark.parametrize(
    ("precond", "attributes", "scaling"),
    [
        ("EDMPrecond", EDM, EDMScaling(0.4, "edm")),
        ("VPPrecond", VP, VPScaling()),
        ("VPPrecond", VP | {"beta_d": 10.0, "beta_min": 0.3, "M": 500}, VPScaling(10.0, 0.3, 500)),
        ("VEPrecond", VE, VEScaling()),
        ("iDDPMPrecond", IDDPM, IDDPMScaling()),
    ],
)
@torch.no_grad()
def test_preconditionings(
    precond: str, attributes: dict[str, Any], scaling: Any, edm_file: Any, reference: Any, x_t: Tensor
):
    kwargs = SONG | ({"out_channels": 6} if precond == "iDDPMPrecond" else {})
    weights = song_weights(kwargs)
    buffers = {"u": IDDPMScaling().levels()} if precond == "iDDPMPrecond" else {}
    model = load_edm(edm_file(precond, attributes, "SongUNet", kwargs, weights, **buffers))
    assert model.denoiser.scaling == scaling
    assert (model.info.kind, model.info.sigma_min, model.info.sigma_max) == ("diffusion", *NOISE_RANGES[precond])
    assert model.config.out_channels == 3

    sigma = SIGMA[:, None, None, None]
    if precond == "EDMPrecond":
        c_skip, c_out, c_in = (
            0.16 / (sigma**2 + 0.16),
            sigma * 0.4 / (sigma**2 + 0.16).sqrt(),
            (sigma**2 + 0.16) ** -0.5,
        )
        c_noise = SIGMA.log() / 4
    elif precond == "VPPrecond":
        c_skip, c_out, c_in = 1, -sigma, (sigma**2 + 1) ** -0.5
        beta_d, beta_min = attributes["beta_d"], attributes["beta_min"]
        t = ((beta_min**2 + 2 * beta_d * (1 + SIGMA**2).log()).sqrt() - beta_min) / beta_d
        c_noise = (attributes["M"] - 1) * t
    elif precond == "VEPrecond":
        c_skip, c_out, c_in, c_noise = 1, sigma, 1, (0.5 * SIGMA).log()
    else:
        c_skip, c_out, c_in = 1, -sigma, (sigma**2 + 1) ** -0.5
        c_noise = torch.stack([999 - (buffers["u"] - s).abs().argmin() for s in SIGMA]).float()
    output = reference.song(weights, kwargs, c_in * x_t, c_noise, torch.eye(5)[LABELS])
    expected = c_skip * x_t + c_out * output[:, :3]
    # c_noise is hundreds, of which fp32 keeps five digits after the point; sigma multiplies what is left of them.
    torch.testing.assert_close(model.denoiser(x_t, SIGMA, LABELS), expected, rtol=1e-4, atol=3e-3)


@torch.no_grad()
def test_the_variance_of_iddpm_is_left_out_of_adm_networks(edm_file: Any, reference: Any, x_t: Tensor):
    kwargs = ADM | {"out_channels": 6}
    weights = adm_weights(kwargs)
    path = edm_file("iDDPMPrecond", IDDPM, "DhariwalUNet", kwargs, weights, u=IDDPMScaling().levels())
    model = load_edm(path)
    assert model.config.out_channels == 3
    expected = reference.dhariwal(weights, kwargs, x_t, torch.tensor([3.0, 900.0]), torch.eye(5)[LABELS])[:, :3]
    output = model.denoiser.network(x_t, torch.tensor([3.0, 900.0]), LABELS)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_heun_gives_the_images_of_the_published_sampler(edm_file: Any, reference: Any, generator: torch.Generator):
    weights = song_weights(SONG)
    model = load_edm(edm_file("EDMPrecond", EDM, "SongUNet", SONG, weights))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        c_in = (sigma**2 + 0.16) ** -0.5
        c_noise = torch.full((2,), math.log(sigma) / 4)
        output = reference.song(weights, SONG, c_in * x, c_noise, torch.eye(5)[LABELS])
        return 0.16 / (sigma**2 + 0.16) * x + sigma * 0.4 * c_in * output

    x_T = torch.randn(2, 3, 16, 16, generator=generator)
    steps = 5
    sigmas = [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)] + [0]
    x = x_T * sigmas[0]
    for t, r in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoise(x, t)) / t
        euler = x + (r - t) * slope
        x = x + (r - t) * (slope + (euler - denoise(euler, r)) / r) / 2 if r else euler
    info = model.info
    ours = heun(model.denoiser, x_T, steps, LABELS, sigma_min=info.sigma_min, sigma_max=info.sigma_max, clip=False)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("class_name", ["SongUNet", "DhariwalUNet"])
@torch.no_grad()
def test_saved_as_a_model_folder(class_name: str, edm_file: Any, tmp_path: Path, x_t: Tensor):
    song = class_name == "SongUNet"
    kwargs = (SONG if song else ADM) | {"out_channels": 6}
    attributes = IDDPM | {"C_2": 0.02, "M": 500}
    u = IDDPMScaling(0.001, 0.02, 500).levels()
    model = load_edm(
        edm_file("iDDPMPrecond", attributes, class_name, kwargs, (song_weights if song else adm_weights)(kwargs), u=u)
    )
    save_model(tmp_path / "folder", model.denoiser.network, model.info, card="A teacher.\n")
    again = load_model(tmp_path / "folder")
    assert (again.info, again.config) == (model.info, model.config)
    assert torch.equal(again.denoiser(x_t, SIGMA, LABELS), model.denoiser(x_t, SIGMA, LABELS))


def test_what_a_model_says_of_itself(edm_file: Any):
    path = edm_file("EDMPrecond", EDM, "SongUNet", SONG, song_weights(SONG))
    model = load_edm(path)
    assert (model.format, model.path, model.dtype) == ("EDM pickle", path, torch.float32)
    assert model.info.preconditioning == "edm" and model.info.noise_embedding == "edm"
    assert (model.num_classes, model.image_shape) == (5, (3, 16, 16))
    assert not model.denoiser.training and not any(p.requires_grad for p in model.denoiser.parameters())


def test_half_precision_weights_become_fp32(edm_file: Any):
    weights = song_weights(SONG)
    model = load_edm(edm_file("EDMPrecond", EDM, "SongUNet", SONG, {k: v.half() for k, v in weights.items()}))
    assert model.dtype == torch.float16
    for name, tensor in model.denoiser.network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[name].half().float())


def test_a_network_that_is_not_in_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    object_ = whole("EDMPrecond", EDM, "SongUNet", SONG, song_weights(SONG))
    assert load_edm(write(tmp_path / "edm.pkl", object_, monkeypatch)).config == song_config(SONG)


def test_truncated_files(edm_file: Any, tmp_path: Path):
    weights = {"map_layer0.weight": torch.zeros(100, 100), "enc.16x16_conv.bias": torch.zeros(100)}
    content = edm_file("EDMPrecond", EDM, "SongUNet", SONG, weights).read_bytes()
    cut = tmp_path / "cut.pkl"
    for i in range(20):
        cut.write_bytes(content[: max(1, len(content) * i // 20)])
        with pytest.raises(UserError, match="cut.pkl is no pickle, or is cut short") as caught:
            load_edm(cut)
        assert "\n" not in str(caught.value)


def changed(weights: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    return {k: v for k, v in (weights | {name: tensor}).items() if v is not None}


CONV = "enc.16x16_conv.weight"
DOWN = "enc.8x8_down.conv0.resample_filter"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (CONV, None, "lacks tensor 'enc.16x16_conv.weight'"),
        ("enc.16x16_conv.extra", torch.zeros(1), "unexpected tensor 'enc.16x16_conv.extra'"),
        ("map_fourier.freqs", torch.zeros(1), "unexpected tensor 'map_fourier.freqs'"),
        (CONV, torch.zeros(32, 3, 1, 1), r"enc.16x16_conv.weight has shape \[32, 3, 1, 1\], expected \[32, 3, 3, 3\]"),
        (CONV, torch.full((32, 3, 3, 3), float("nan")), "'model.enc.16x16_conv.weight' has values that are not finite"),
        (CONV, torch.full((32, 3, 3, 3), float("inf")), "'model.enc.16x16_conv.weight' has values that are not finite"),
        (CONV, torch.zeros(32, 3, 3, 3, dtype=torch.int64), "'model.enc.16x16_conv.weight' is torch.int64"),
        (DOWN, torch.full((1, 1, 2, 2), 0.3), r"conv0.resample_filter is not the filter of taps \[1, 1\]"),
    ],
)
def test_tensors_that_do_not_fit(name: str, tensor: Tensor | None, message: str, edm_file: Any):
    path = edm_file("EDMPrecond", EDM, "SongUNet", SONG, changed(song_weights(SONG), name, tensor))
    with pytest.raises(UserError, match=f"edm.pkl: .*{message}") as caught:
        load_edm(path)
    assert "\n" not in str(caught.value)


def test_filters_of_adm_networks_are_checked(edm_file: Any):
    path = edm_file("EDMPrecond", EDM, "DhariwalUNet", ADM, changed(adm_weights(ADM), DOWN, torch.ones(1, 1, 2, 2)))
    with pytest.raises(UserError, match="is not the filter of taps"):
        load_edm(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notime": True}, "argument 'notime' of its SongUNet is unknown"),
        ({"sample_size": 16}, "argument 'sample_size' of its SongUNet is unknown"),
        ({"model_channels": "32"}, "argument model_channels is '32'; it must be int"),
        ({"model_channels": True}, "argument model_channels is True; it must be int"),
        ({"channel_mult": [1, "2"]}, "argument channel_mult is a list; it must be integers"),
        ({"channel_mult": 2}, "argument channel_mult is 2; it must be integers"),
        ({"dropout": None}, "argument dropout is None; it must be float"),
        ({"encoder_type": 1}, "argument encoder_type is 1; it must be str"),
        ({"encoder_type": "dense\n"}, r"encoder_type: 'dense\\n' is not one of"),
        ({"label_dim": -1}, "num_class_embeds: -1 is not between"),
        ({"label_dim": 10**15}, "num_class_embeds: 1000000000000000 is not between"),
        ({"num_blocks": 10**12}, "num_blocks: 1000000000000 is not between"),
        ({"img_resolution": 2**40}, "sample_size: 1099511627776 is not between"),
        ({"channel_mult": [1] * 1000}, "channel_mult: 1000 resolutions"),
        ({"channel_mult": []}, "channel_mult: 0 resolutions"),
        ({"in_channels": 4}, "has 4 channels in and 3 out, for images of 3 they are 3 and 3"),
        ({"out_channels": 6}, "has 3 channels in and 6 out"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], message: str, edm_file: Any):
    path = edm_file("EDMPrecond", EDM, "SongUNet", SONG | changes, {"map_layer0.bias": torch.zeros(1)})
    with pytest.raises(UserError, match=f"edm.pkl: .*{message}") as caught:
        load_edm(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample_filter": [1, 1]}, "argument 'resample_filter' of its DhariwalUNet is unknown"),
        ({"model_channels": 96}, "a DhariwalUNet of width 96 is not supported"),
        ({"model_channels": 160}, "a DhariwalUNet of width 160 is not supported"),
        ({"channel_mult": [2, 2]}, "the first must be 1"),
        ({"channel_mult_emb": 2}, "the first must be 1 and the embedding 4"),
    ],
)
def test_adm_networks_that_are_not_supported(changes: dict[str, Any], message: str, edm_file: Any):
    with pytest.raises(UserError, match=f"edm.pkl: .*{message}"):
        load_edm(edm_file("EDMPrecond", EDM, "DhariwalUNet", ADM | changes, {"map_layer0.bias": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("precond", "attributes", "message"),
    [
        ("EDMPrecond", EDM | {"sigma_data": "x"}, "sigma_data is 'x'; it must be a number"),
        ("EDMPrecond", EDM | {"sigma_data": float("nan")}, "sigma_data is nan; it must be a number"),
        ("EDMPrecond", EDM | {"sigma_data": 0}, "sigma_data 0.0 must be positive"),
        ("EDMPrecond", EDM | {"sigma_min": 90}, "sigma_min 90.0 and sigma_max 80.0"),
        ("EDMPrecond", EDM | {"img_channels": 3.0}, "img_channels is 3.0; it must be a number"),
        ("VPPrecond", VP | {"M": 10**9}, "M 1000000000 must lie between"),
        ("VPPrecond", VP | {"beta_d": -1.0}, "beta_d -1.0 must be positive"),
        ("VEPrecond", {"sigma_min": 0.02}, "sigma_max is None; it must be a number"),
        ("iDDPMPrecond", IDDPM, "noise levels u are not those of C_1, C_2 and M"),
        ("iDDPMPrecond", IDDPM | {"u": IDDPMScaling(C_2=0.1).levels()}, "noise levels u are not those"),
        ("iDDPMPrecond", IDDPM | {"u": IDDPMScaling(M=999).levels()}, "noise levels u are not those"),
        ("EDM2Precond", EDM, "it holds a 'EDM2Precond'; supported are EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond"),
    ],
)
def test_preconditionings_that_do_not_fit(precond: str, attributes: dict[str, Any], message: str, edm_file: Any):
    buffers = {"u": attributes["u"]} if "u" in attributes else {}
    attributes = {name: value for name, value in attributes.items() if name != "u"}
    path = edm_file(precond, attributes, "SongUNet", SONG, {"map_layer0.bias": torch.zeros(1)}, **buffers)
    with pytest.raises(UserError, match=f"edm.pkl: .*{message}"):
        load_edm(path)


def other_files() -> dict[str, tuple[Any, str]]:
    def edited(edit: Callable[[Any], object]) -> Any:
        object_ = whole("EDMPrecond", EDM, "SongUNet", SONG, {"map_layer0.bias": torch.zeros(1)})
        edit(object_)
        return {"ema": object_}

    def positional(o: Any) -> None:
        o.model._init_args = (16, 3)

    def itself(o: Any) -> None:
        # Not by the object itself, which no pickle of a persistent class can hold, but by a plain container in it.
        o.model._modules["enc"] = nn.ModuleDict()
        o.model._modules["enc"]._modules["x"] = o.model._modules["enc"]

    return {
        "a list": ([1, 2], "no network of EDM's under 'ema'$"),
        "another dict": ({"G_ema": 1, "training_set_kwargs": {}}, "under 'ema'; it has .'G_ema', "),
        "state dict": ({"ema": collections.OrderedDict(w=torch.zeros(1))}, "no network of EDM's under 'ema'"),
        "StyleGAN": ({"ema": Persistent("Generator")}, "it holds a 'Generator'"),
        "no network": (edited(lambda o: o._modules.clear()), "its network is 'none'"),
        "another network": (edited(lambda o: vars(o.model).update(pickled_as="UNet")), "its network is 'UNet'"),
        "positional": (edited(positional), "missing, or not given by name"),
        "no arguments": (edited(lambda o: vars(o.model).pop("_init_kwargs")), "missing, or not given by name"),
        "few arguments": (edited(lambda o: o.model._init_kwargs.update(img_resolution=16) or
                          vars(o.model).update(_init_kwargs={})), "was built without sample_size"),
        "a parameter that is none": (edited(lambda o: o._parameters.update(w="x")), "tensor 'w' is a str"),
        "a module that is none": (edited(lambda o: o._modules.update(w=3)), "module 'w' is a int"),
        "no dicts": (edited(lambda o: vars(o.model).update(_parameters=[])), "has no dicts of parameters"),
        "in a circle": (edited(itself), "nested without end"),
    }  # fmt: skip


@pytest.mark.parametrize("name", other_files())
def test_other_pickles(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content, message = other_files()[name]
    with pytest.raises(UserError, match=f"edm.pkl: .*{message}") as caught:
        load_edm(write(tmp_path / "edm.pkl", content, monkeypatch))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- ECT's snapshots

ECM = {"sigma_min": 0.003, "sigma_max": float("inf"), "sigma_data": 0.4}


class Loss:
    """ECT's loss, which has one of its methods as an attribute."""

    def __init__(self) -> None:
        self.P_mean, self.stage, self.t_to_r = -1.1, 3, self.t_to_r_sigmoid

    def t_to_r_sigmoid(self) -> None: ...

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": Persistent.source, "class_name": "ECMLoss"}
        return reconstruct, (meta | {"state": vars(self)},)


@pytest.fixture
def ect_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def make(class_name: str, kwargs: dict[str, Any], weights: dict[str, Tensor], **changes: Any) -> Path:
        content = {
            "ema": whole("ECMPrecond", ECM | changes, class_name, kwargs, weights),
            "loss_fn": Loss(),
            "augment_pipe": None,
            "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "data.zip", "xflip": False},
        }
        return write(tmp_path / "network-snapshot-000500.pkl", content, monkeypatch)

    return make


NETWORKS_OF_ECT = {
    "ddpmpp": ("SongUNet", SONG | {"label_dim": 0}, song_weights),
    "ncsnpp": ("SongUNet", NCSNPP, song_weights),
    "adm": ("DhariwalUNet", ADM, adm_weights),
}


@pytest.mark.parametrize("name", NETWORKS_OF_ECT)
@torch.no_grad()
def test_snapshots_of_ect_are_consistency_models(name: str, ect_file: Any, reference: Any, x_t: Tensor, tmp_path: Path):
    class_name, kwargs, make = NETWORKS_OF_ECT[name]
    weights = make(kwargs)
    path = ect_file(class_name, kwargs, weights)
    model = load_edm(path)
    info = model.info
    assert (info.kind, info.sigma_min, info.sigma_max, info.sigma_data) == ("consistency", 0.003, 80.0, 0.4)
    assert (info.noise_embedding, info.clip, model.method) == ("edm", False, "easy consistency tuning (ECT)")

    network = reference.song if class_name == "SongUNet" else reference.dhariwal
    labels, one_hot = (LABELS, torch.eye(5)[LABELS]) if kwargs["label_dim"] else (None, None)
    for sigma in (SIGMA, torch.tensor([0.003, 80.0]), torch.tensor([0.02, 0.821])):
        s, sd, least = sigma[:, None, None, None], 0.4, 0.003
        c_in = (s**2 + sd**2) ** -0.5
        output = network(weights, kwargs, c_in * x_t, sigma.log() / 4, one_hot)
        expected = sd**2 / ((s - least) ** 2 + sd**2) * x_t + (s - least) * sd * c_in * output
        scale = float(expected.abs().max())
        torch.testing.assert_close(model.denoiser(x_t, sigma, labels), expected, rtol=1e-5, atol=1e-5 * scale)
    least = torch.full((2,), 0.003)
    assert torch.equal(model.denoiser(x_t, least, labels), x_t)

    save_model(tmp_path / "folder", model.denoiser.network, info, card="")
    again = load_model(tmp_path / "folder")
    assert again.info == info and again.config == model.config
    assert torch.equal(again.denoiser(x_t, SIGMA, labels), model.denoiser(x_t, SIGMA, labels))


@torch.no_grad()
def test_snapshots_of_ect_are_sampled_in_one_step_and_two(ect_file: Any):
    path = ect_file("SongUNet", SONG, song_weights(SONG))
    model = unistep.load(path, device="cpu")
    noise = 80 * ImageRandom([image_seed(7, i) for i in range(2)]).randn(3, 16, 16)
    expected = to_uint8(model.denoiser(noise, torch.full((2,), 80.0), LABELS))
    assert torch.equal(unistep.sample(model, num_images=2, seed=7, steps=1, class_labels=[4, 0]).pixels, expected)
    assert unistep.sample(model, num_images=2, seed=7, steps=2).pixels.shape == (2, 3, 16, 16)
    (middle,) = sigmas_from_indices(model.info.timesteps, 1000, 0.003, 80.0)[1:]
    assert middle == pytest.approx(0.821, rel=0.005)  # the level of ECT's two steps


def test_what_snapshots_of_ect_say_counts(ect_file: Any, tmp_path: Path):
    weights = song_weights(SONG)
    assert load_edm(ect_file("SongUNet", SONG, weights, sigma_min=0.001)).info.sigma_min == 0.001
    info = load_edm(ect_file("SongUNet", SONG, weights, sigma_min=1.0, sigma_max=20)).info
    assert (info.sigma_min, info.sigma_max, info.timesteps) == (1.0, 20.0, None)
    for changes, message in (
        ({"sigma_min": "low"}, "sigma_min is 'low'; it must be a number"),
        ({"sigma_min": float("inf")}, "sigma_min inf and sigma_max 80.0"),
        ({"sigma_data": None}, "sigma_data is None; it must be a number"),
    ):
        with pytest.raises(UserError, match=message):
            load_edm(ect_file("SongUNet", SONG, weights, **changes))


def test_another_entry_of_a_pickle_may_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = song_weights(SONG)
    net = {name: tensor + 1 for name, tensor in weights.items() if not name.endswith("resample_filter")}
    content = {
        "ema": whole("EDMPrecond", EDM, "SongUNet", SONG, weights),
        "net": whole("EDMPrecond", EDM, "SongUNet", SONG, weights | net),
    }
    path = write(tmp_path / "edm.pkl", content, monkeypatch)
    for choice, expected in ((None, weights), ("ema", weights), ("net", net)):
        bias = load_edm(path, weights=choice).denoiser.network.get_parameter("map_layer0.bias")
        assert torch.equal(bias, expected["map_layer0.bias"])
    with pytest.raises(UserError, match="`weights` 'model': it holds networks only under ema, net; choose one"):
        load_edm(path, weights="model")


def test_a_network_under_another_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = {"G_ema": whole("EDMPrecond", EDM, "SongUNet", SONG, song_weights(SONG)), "loss_fn": None}
    path = write(tmp_path / "edm.pkl", content, monkeypatch)
    for choice in (None, "loss_fn"):
        with pytest.raises(UserError, match="no network under '(ema|loss_fn)' but 'G_ema'; choose by `weights`"):
            load_edm(path, weights=choice)
    assert load_edm(path, weights="G_ema").info.kind == "diffusion"


def test_training_states_are_named(tmp_path: Path):
    path = tmp_path / "training-state-000500.pt"
    torch.save({"net": Payload(), "optimizer_state": {"state": {}, "param_groups": []}}, path)
    with pytest.raises(UserError, match=r"is a training state of EDM's or ECT's code.*; give the network-snapshot-\*"):
        unistep.load(path)


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)
