"""diffusers' folders, both ways: what it saves opens here, what we save opens there, and both compute the same."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unistep.core.parameterization import ConsistencyScaling
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.formats.model_folder.network import read_network
from unistep.networks.adm import UNet
from unistep.samplers.consistency import sample_multistep, sigmas_from_indices

diffusers = pytest.importorskip("diffusers")

# The configs of the published folders: scripts/convert_consistency_to_diffusers.py of diffusers.
IMAGENET_64 = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 3,
    "num_class_embeds": 1000,
    "block_out_channels": [192, 384, 576, 768],
    "attention_head_dim": 64,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "upsample_type": "resnet",
    "downsample_type": "resnet",
}
LSUN_256 = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "num_class_embeds": None,
    "block_out_channels": [256, 256, 512, 512, 1024, 1024],
    "attention_head_dim": 64,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"] * 3,
    "resnet_time_scale_shift": "default",
    "upsample_type": "resnet",
    "downsample_type": "resnet",
}
# Widths and sizes at which a test takes no time; everything else stays.
SMALL_IMAGENET = {"block_out_channels": [32, 64, 96, 128], "attention_head_dim": 32, "sample_size": 16}
SMALL_LSUN = {"block_out_channels": [32, 32, 32, 64, 64, 64], "attention_head_dim": 32, "sample_size": 32}
# Config, reduction, parameters, N.
PUBLISHED = {
    "cd_imagenet64_l2": (IMAGENET_64, SMALL_IMAGENET, 295_899_267, 40),
    "cd_imagenet64_lpips": (IMAGENET_64, SMALL_IMAGENET, 295_899_267, 40),
    "ct_imagenet64": (IMAGENET_64, SMALL_IMAGENET, 295_899_267, 201),
    "cd_bedroom256_l2": (LSUN_256, SMALL_LSUN, 526_304_771, 40),
    "cd_bedroom256_lpips": (LSUN_256, SMALL_LSUN, 526_304_771, 40),
    "ct_bedroom256": (LSUN_256, SMALL_LSUN, 526_304_771, 151),
    "cd_cat256_l2": (LSUN_256, SMALL_LSUN, 526_304_771, 40),
    "cd_cat256_lpips": (LSUN_256, SMALL_LSUN, 526_304_771, 40),
    "ct_cat256": (LSUN_256, SMALL_LSUN, 526_304_771, 151),
}
# What UNet2DModel had no field for when the folders were published, in July 2023.
LATER_FIELDS = ("dropout", "mid_block_type", "num_train_timesteps", "time_embedding_dim")


def randomize(network: torch.nn.Module, seed: int = 0) -> None:
    """Fills all weights, also those that begin as zero."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=noise) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))


def build_pipeline(config: dict, levels: int, seed: int = 0):
    unet = diffusers.UNet2DModel(**config).eval()
    randomize(unet, seed)
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=levels, sigma_min=0.002, sigma_max=80.0)
    return diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Callable:
    """theirs(name): a pipeline like the published one of that name, and the folder diffusers saved it in."""
    made = {}

    def build(name: str):
        config, small, _, levels = PUBLISHED[name]
        if name not in made:
            pipeline = build_pipeline(config | small, levels, seed=len(made))
            folder = tmp_path_factory.mktemp("published") / name
            pipeline.save_pretrained(folder)
            made[name] = pipeline, folder
        return made[name]

    return build


@pytest.fixture
def warnings_of_diffusers():
    """What diffusers says in its log."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@torch.no_grad()
def compare_networks(ours: torch.nn.Module, unet: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    size = unet.config.sample_size
    x = torch.randn(2, 3, size, size, generator=generator)
    c_noise = 250 * torch.tensor([80.0, 0.7]).log()
    labels = torch.tensor([3, 7]) if unet.config.num_class_embeds else None
    expected = unet(x, c_noise, labels).sample
    assert 0.1 < expected.std() < 10
    torch.testing.assert_close(ours(x, c_noise, labels), expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------- from diffusers


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders_open(theirs, name):
    pipeline, folder = theirs(name)
    model = load_model(folder)
    assert model.info == ModelInfo(num_train_timesteps=PUBLISHED[name][3])
    assert model.denoiser.scaling == ConsistencyScaling(0.002, 0.5, "adm")
    assert model.num_classes == (1000 if "imagenet" in name else 0)
    compare_networks(model.denoiser.network, pipeline.unet)


@pytest.mark.parametrize("name", ["cd_imagenet64_l2", "ct_cat256"])
def test_folders_of_2023_open(theirs, tmp_path, name):
    """As above, without the fields that came later."""
    pipeline, _ = theirs(name)
    folder = tmp_path / "model"
    pipeline.save_pretrained(folder)
    edit(folder / "unet" / "config.json", lambda c: [c.pop(field, None) for field in LATER_FIELDS])
    for file in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        edit(folder / file, lambda c: c.update(_diffusers_version="0.18.0.dev0", _name_or_path="/tmp/x"))
    edit(folder / "scheduler" / "scheduler_config.json", lambda c: c.update(timesteps=None))
    model = load_model(folder)
    assert model.info == ModelInfo(num_train_timesteps=PUBLISHED[name][3])
    compare_networks(model.denoiser.network, pipeline.unet)


@pytest.mark.parametrize("name", ["cd_imagenet64_l2", "cd_cat256_lpips"])
def test_full_size_networks_have_the_same_tensors(tmp_path, name):
    config, _, parameters, _ = PUBLISHED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"_class_name": "UNet2DModel", "_diffusers_version": "0.18.0.dev0"} | config))
    ours = read_network(path)
    assert all(p.is_meta for p in ours.parameters())
    assert sum(p.numel() for p in ours.parameters()) == parameters
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**config)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == shapes


def test_fields_left_out_have_diffusers_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"_class_name": "UNet2DModel"}')
    ours = read_network(path)
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == shapes
    config = ours.config
    for field, value in vars(config).items():
        if field not in theirs.config:  # an input that no network of diffusers has
            assert not value, field
            continue
        theirs_value = theirs.config[field]
        assert value == (tuple(theirs_value) if isinstance(theirs_value, list) else theirs_value), field


def test_bookkeeping_of_diffusers_is_passed_over(theirs, tmp_path):
    """`EMAModel.save_pretrained` writes the state of its averaging into config.json."""
    pipeline, _ = theirs("cd_cat256_l2")
    averaged = diffusers.training_utils.EMAModel(
        pipeline.unet.parameters(), model_cls=diffusers.UNet2DModel, model_config=pipeline.unet.config
    )
    pipeline.save_pretrained(tmp_path / "model")
    averaged.save_pretrained(tmp_path / "model" / "unet")
    assert "optimization_step" in json.loads((tmp_path / "model" / "unet" / "config.json").read_text())
    compare_networks(load_model(tmp_path / "model").denoiser.network, pipeline.unet)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_layouts_of_weights(theirs, tmp_path, sharded, safe, variant):
    pipeline, _ = theirs("cd_imagenet64_l2")
    dtype = torch.float16 if variant else torch.float32
    pipeline.save_pretrained(tmp_path / "model")
    unet = tmp_path / "model" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    size = "2MB" if sharded else "10GB"
    other = diffusers.UNet2DModel.from_config(pipeline.unet.config)
    other.load_state_dict(pipeline.unet.state_dict())
    other.to(dtype).save_pretrained(unet, safe_serialization=safe, variant=variant, max_shard_size=size)
    files = sorted(p.name for p in unet.iterdir())
    assert (len(files) > 3) == sharded and all(safe != (".bin" in name) for name in files if name != "config.json")

    model = load_model(tmp_path / "model", variant=variant)
    assert model.dtype == dtype
    expected = {name: value.to(dtype).float() for name, value in pipeline.unet.state_dict().items()}
    loaded = model.denoiser.network.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert {value.dtype for value in loaded.values()} == {torch.float32}


def test_bin_of_an_old_torch(theirs, tmp_path):
    """Before 1.6, torch.save wrote no zip file."""
    pipeline, _ = theirs("cd_cat256_l2")
    pipeline.save_pretrained(tmp_path / "model")
    unet = tmp_path / "model" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    state = pipeline.unet.state_dict()
    torch.save(state, unet / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
    compare_networks(load_model(tmp_path / "model").denoiser.network, pipeline.unet)


def test_safetensors_go_before_bin(theirs, tmp_path):
    pipeline, _ = theirs("cd_cat256_l2")
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    compare_networks(load_model(tmp_path / "model").denoiser.network, pipeline.unet)


def test_links_of_the_hubs_cache(theirs, tmp_path):
    """There every file is a link to a blob named by its hash."""
    pipeline, folder = theirs("cd_cat256_l2")
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        link = tmp_path / "snapshot" / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = tmp_path / "blobs" / f"{abs(hash(link)):x}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(blob)
    compare_networks(load_model(tmp_path / "snapshot").denoiser.network, pipeline.unet)


def test_edm_scheduler_means_edm_embedding(theirs, tmp_path):
    """Networks under diffusers' EDMEulerScheduler are told ln(sigma)/4."""
    pipeline, _ = theirs("cd_cat256_l2")
    pipeline.save_pretrained(tmp_path / "model")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.4)
    scheduler.save_pretrained(tmp_path / "model" / "scheduler")
    model = load_model(tmp_path / "model")
    assert model.info == ModelInfo("diffusion", sigma_data=0.4, noise_embedding="edm", num_train_timesteps=1000)
    sigma = torch.tensor([2.5])
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        output = pipeline.unet(scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)).sample
    expected = scheduler.precondition_outputs(x, output, sigma)
    torch.testing.assert_close(model.denoiser(x, sigma), expected, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- to diffusers


@pytest.fixture(scope="module")
def plain(lively, tmp_path_factory) -> Callable[..., Path]:
    """plain(info): the folder of a plain U-Net for colour images of three classes."""

    def build(info: ModelInfo, **fields) -> Path:
        path = tmp_path_factory.mktemp("plain") / "model"
        network = lively(**({"patch_size": 1, "in_channels": 3, "out_channels": 3, "num_class_embeds": 3} | fields))
        save_model(path, network, info, card="")
        return path

    return build


@pytest.mark.parametrize("steps", [[0], [0, 11], [0, 5, 17]])
def test_same_images_as_diffusers(plain, warnings_of_diffusers, steps):
    info = ModelInfo(sigma_data=0.4, sigma_max=60.0, sigma_min=0.01, rho=6.0, num_train_timesteps=20, timesteps=(0, 11))
    path = plain(info)
    pipeline = diffusers.ConsistencyModelPipeline.from_pretrained(path)
    assert warnings_of_diffusers == []
    pipeline.set_progress_bar_config(disable=True)
    noise, labels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    theirs = pipeline(
        3,
        labels,
        num_inference_steps=None,
        timesteps=steps[::-1],
        latents=noise.clone(),
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
    ).images

    model = load_model(path)
    generator = torch.Generator().manual_seed(4)
    ours = sample_multistep(
        model.denoiser,
        noise,
        sigmas_from_indices(steps, 20, 0.01, 60.0, 6.0),
        labels,
        random=lambda x: torch.randn(x.shape, generator=generator),
        sigma_min=0.01,
        sigma_max=60.0,
    )
    ours = (ours / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.1, "the images must say something"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("info", [ModelInfo(timesteps=(0, 11)), ModelInfo("diffusion", null_label=2)])
def test_diffusers_reads_all_without_warnings_and_keeps_all(plain, tmp_path, warnings_of_diffusers, info):
    path = plain(info)
    unet = diffusers.UNet2DModel.from_pretrained(path, subfolder="unet")
    kinds = {"consistency": diffusers.CMStochasticIterativeScheduler, "diffusion": diffusers.EDMEulerScheduler}
    scheduler = kinds[info.kind].from_pretrained(path, subfolder="scheduler")
    assert warnings_of_diffusers == []
    again = tmp_path / "again"
    unet.save_pretrained(again / "unet")
    scheduler.save_pretrained(again / "scheduler")
    (again / "model_index.json").write_bytes((path / "model_index.json").read_bytes())
    model, first = load_model(again), load_model(path)
    assert model.info == info == first.info
    assert model.config == first.config


def test_schedule_of_a_diffusion_model_in_diffusers(plain):
    """Its scheduler's scalings make the same denoiser of the network's output."""
    path = plain(ModelInfo("diffusion", sigma_data=0.4, sigma_min=0.01, sigma_max=50.0, rho=5.0))
    scheduler = diffusers.EDMEulerScheduler.from_pretrained(path, subfolder="scheduler")
    given = [scheduler.config[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho")]
    assert given == [0.01, 50.0, 0.4, 5.0]
    model = load_model(path)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    sigma, labels = torch.tensor([2.5]), torch.tensor([1])
    output = model.denoiser.network(scheduler.precondition_inputs(x, sigma), 250 * sigma.log(), labels)
    expected = scheduler.precondition_outputs(x, output, sigma)
    torch.testing.assert_close(model.denoiser(x, sigma, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [{"patch_size": 2}, {}])
def test_what_diffusers_would_compute_otherwise_does_not_open_there(plain, fields):
    """Folded images, and networks that are told ln(sigma)/4: its consistency pipeline knows neither."""
    path = plain(ModelInfo(noise_embedding="edm" if not fields else "adm"), **fields)
    assert isinstance(load_model(path).denoiser.network, UNet) == (not fields)
    with pytest.raises((ImportError, AttributeError, ValueError)):
        diffusers.ConsistencyModelPipeline.from_pretrained(path)
