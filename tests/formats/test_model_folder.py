"""Model folders: what is saved is what is read, and a folder is replaced as a whole or not at all."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unistep.core.parameterization import ConsistencyScaling, EDMScaling
from unistep.errors import UserError
from unistep.formats.model import ModelInfo, scaling_of
from unistep.formats.model_folder import folder as module
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.networks.adm import UNet
from unistep.networks.patched import PatchedUNet
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.workflows.runs.network import build_network

WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
INFO = ModelInfo(sigma_min=0.003, sigma_max=70.0, rho=6.0, sigma_data=0.4, num_train_timesteps=30, timesteps=(0, 17))


@pytest.fixture(scope="module")
def network(lively):
    return lively(num_class_embeds=3)


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(path, network, INFO, card="# A card\n")
    return path


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def song() -> SongUNet:
    config = SongUNetConfig(
        sample_size=8,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        embedding_type="fourier",
        encoder_type="residual",
        channel_mult_noise=2,
        resample_filter=(1, 3, 3, 1),
    )
    network = SongUNet(config).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=noise) * (0.1 if value.ndim > 1 else 1.0))
    return network


def files(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(
    "info",
    [
        INFO,
        ModelInfo(),
        ModelInfo(timesteps=(0, 17), schedules=((0, 9, 20), (0, 5, 12, 30))),
        ModelInfo(schedules=((0, 9, 20),)),
        ModelInfo(sigma_min=0.0, noise_embedding="edm"),
        ModelInfo("diffusion", sigma_data=0.3, rho=5.0),
        ModelInfo("diffusion", null_label=2, num_train_timesteps=18),
        ModelInfo("diffusion", noise_embedding="edm"),
        ModelInfo("diffusion", solver="progressive", steps=4),
        ModelInfo("diffusion", solver="euler"),
        ModelInfo("diffusion", preconditioning="vp", beta_d=10.0, beta_min=0.2, M=500),
        ModelInfo("diffusion", preconditioning="iddpm", C_1=0.01, C_2=0.009),
    ],
)
@pytest.mark.parametrize("patch_size", [1, 2])
def test_round_trip(lively, tmp_path, info, patch_size, generator):
    network = lively(num_class_embeds=3, patch_size=patch_size)
    save_model(tmp_path / "model", network, info, card="# A card\n")
    model = load_model(tmp_path / "model")
    assert model.info == info
    assert model.config == network.config
    assert type(model.denoiser.network) is (UNet if patch_size == 1 else PatchedUNet)
    assert not model.denoiser.training and not any(p.requires_grad for p in model.denoiser.parameters())
    assert model.denoiser.scaling == scaling_of(info)
    x, labels = torch.randn(2, 1, 16, 16, generator=generator), torch.tensor([0, 2])
    c_noise = torch.tensor([1000.0, -500.0])
    assert torch.equal(model.denoiser.network(x, c_noise, labels), network(x, c_noise, labels))
    assert model.image_shape == (1, 16, 16)
    assert model.num_classes == (2 if info.null_label else 3)


def test_how_a_model_is_sampled_stands_where_diffusers_passes_over_it(lively, tmp_path):
    save_model(tmp_path / "a", lively(), ModelInfo("diffusion", solver="progressive", steps=4), card="")
    save_model(tmp_path / "b", lively(), ModelInfo("diffusion"), card="")
    schedules = [json.loads((tmp_path / name / "scheduler" / "scheduler_config.json").read_text()) for name in "ab"]
    own = [schedule.pop("_unistep") for schedule in schedules]
    assert own[0] == own[1] | {"solver": "progressive", "steps": 4}
    assert schedules[0] == schedules[1]
    info = load_model(tmp_path / "b").info
    assert (info.solver, info.steps) == ("heun", None)


@pytest.mark.parametrize("steps", [0, -1, 1_000_001])
def test_steps_out_of_range(steps):
    with pytest.raises(UserError, match=f"steps {steps} must lie between 1 and 1000000"):
        ModelInfo("diffusion", steps=steps)


def test_scalings_of_a_folder(lively, tmp_path):
    save_model(tmp_path / "a", lively(), INFO, card="")
    save_model(tmp_path / "b", lively(), ModelInfo("diffusion", sigma_data=0.3), card="")
    assert load_model(tmp_path / "a").denoiser.scaling == ConsistencyScaling(0.003, 0.4, "adm")
    assert load_model(tmp_path / "b").denoiser.scaling == EDMScaling(0.3, "adm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_song_network_round_trip(song, tmp_path, dtype, generator):
    save_model(tmp_path / "model", song, ModelInfo("diffusion", noise_embedding="edm"), card="", dtype=dtype)
    model = load_model(tmp_path / "model")
    assert type(model.denoiser.network) is SongUNet and model.config == song.config
    x, c_noise = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([1.1, -1.5])
    expected = song(x, c_noise)
    assert expected.std() > 0.01
    # Its frequencies are multiplied by 2 pi c_noise: rounded to fp16 they would change the output by several percent.
    assert torch.equal(model.denoiser.network.state_dict()["map_noise.freqs"], song.state_dict()["map_noise.freqs"])
    tolerance = 0 if dtype == torch.float32 else 0.01 * float(expected.std())
    torch.testing.assert_close(model.denoiser.network(x, c_noise), expected, rtol=0, atol=tolerance)


def test_unknown_network_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="a Linear cannot be saved in a model folder; UNet2DModel, "):
        save_model(tmp_path / "model", torch.nn.Linear(1, 1), ModelInfo(), card="")
    assert not any(tmp_path.iterdir())


def test_layout(saved):
    assert set(files(saved)) == {
        Path("model_index.json"),
        Path("unet", "config.json"),
        WEIGHTS,
        Path("scheduler", "scheduler_config.json"),
        Path("README.md"),
    }
    assert (saved / "README.md").read_text() == "# A card\n"


def test_all_files_have_the_usual_permissions(saved):
    modes = {stat.S_IMODE(p.stat().st_mode) for p in saved.rglob("*") if p.is_file()}
    assert modes == {stat.S_IMODE((saved / "README.md").stat().st_mode)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_model(network, saved, tmp_path, dtype):
    save_model(tmp_path / "half", network, INFO, card="", dtype=dtype)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.6 * (saved / WEIGHTS).stat().st_size
    assert {v.dtype for v in load_file(tmp_path / "half" / WEIGHTS).values()} == {dtype}
    model = load_model(tmp_path / "half")
    assert (model.dtype, load_model(saved).dtype) == (dtype, torch.float32)
    loaded = model.denoiser.network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value.to(dtype).float())


def test_what_half_precision_cannot_hold_is_not_saved(lively, tmp_path):
    network = lively()
    network.unet.conv_in.bias[3] = 1e5
    save_model(tmp_path / "model", network, ModelInfo(), card="")
    before = files(tmp_path / "model")
    with pytest.raises(UserError, match="tensor unet.conv_in.bias has values that are not finite as float16"):
        save_model(tmp_path / "model", network, ModelInfo(), card="", dtype=torch.float16)
    assert files(tmp_path / "model") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_large_but_finite_weights_are_kept(lively, tmp_path):
    """Their sum is not finite."""
    network = lively()
    network.unet.conv_in.weight.fill_(3e38)
    save_model(tmp_path / "model", network, ModelInfo(), card="")
    assert (load_model(tmp_path / "model").denoiser.network.unet.conv_in.weight == 3e38).all()


def test_variant(network, saved, tmp_path):
    save_model(tmp_path / "model", network, INFO, card="", dtype=torch.float16, variant="fp16")
    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    assert load_model(tmp_path / "model", variant="fp16").dtype == torch.float16
    with pytest.raises(UserError, match="no plain weights; it has variant fp16"):
        load_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"no weights of variant bf16; it has the plain ones \(no variant\)"):
        load_model(saved, variant="bf16")
    for wrong in ("../x", "", "a.b", "a b"):
        with pytest.raises(UserError, match="is not a word of letters and digits"):
            save_model(tmp_path / "other", network, INFO, card="", variant=wrong)


def test_meta_device_checks_and_reads_no_values(copy):
    model = load_model(copy, "meta")
    assert {p.device.type for p in model.denoiser.parameters()} == {"meta"}
    assert model.info == INFO and model.dtype == torch.float32
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot be read"):
        load_model(copy, "meta")


# ------------------------------------------------------------------------------------------------- files and memory


def test_changing_weights_leaves_the_file_alone(copy):
    before = files(copy)
    model = load_model(copy)
    for p in model.denoiser.parameters():
        p.fill_(7)
    assert files(copy) == before


@pytest.mark.parametrize("change", ["save", "remove"])
def test_loaded_weights_outlive_the_folder(copy, lively, network, change):
    model = load_model(copy)
    if change == "save":
        save_model(copy, lively(seed=1, num_class_embeds=3), INFO, card="")
    else:
        shutil.rmtree(copy)
    for name, value in model.denoiser.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_a_loaded_model_can_be_saved_over_itself(copy):
    before = load_file(copy / WEIGHTS)
    model = load_model(copy)
    save_model(copy, model.denoiser.network, model.info, card="# A card\n")
    after = load_file(copy / WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_random_state_is_left_alone(saved, song, tmp_path):
    save_model(tmp_path / "song", song, ModelInfo("diffusion", noise_embedding="edm"), card="")
    for folder in (saved, tmp_path / "song"):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        load_model(folder)
        assert torch.equal(torch.rand(1), expected)


def test_building_is_as_before_after_loading(saved, network):
    """Loading switches off that layers fill their weights, for itself alone."""
    load_model(saved)
    assert build_network(network.config, 0).state_dict()["unet.conv_in.weight"].std() > 0
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


# ---------------------------------------------------------------------------------------------------------- replacing


def test_older_model_is_replaced(lively, network, tmp_path):
    path = tmp_path / "model"
    save_model(path, lively(seed=1), ModelInfo(), card="old")
    save_model(path, network, INFO, card="new")
    assert load_model(path).info == INFO
    assert (path / "README.md").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_model_stays_a_link(copy, network):
    link = copy.with_name("link")
    link.symlink_to(copy)
    save_model(link, network, ModelInfo(), card="new")
    assert link.is_symlink() and (copy / "README.md").read_text() == "new"
    assert sorted(copy.parent.iterdir()) == [copy, link]


def fail_at_the_card(monkeypatch) -> None:
    """The card is the last file of the folder."""
    write_text = Path.write_text

    def full(path, *args, **kwargs):
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)


def fail_at_the_last_rename(monkeypatch) -> None:
    replace = os.replace

    def broken(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", broken)


@pytest.mark.parametrize("failure", [fail_at_the_card, fail_at_the_last_rename])
@pytest.mark.parametrize("older", [False, True])
def test_failure_leaves_what_was_there(copy, lively, monkeypatch, failure, older):
    path = copy if older else copy.with_name("new")
    before = files(copy)
    failure(monkeypatch)
    with pytest.raises(UserError, match=f"cannot write {path}: (No space|Input/output)"):
        save_model(path, lively(seed=1), ModelInfo(), card="")
    assert files(copy) == before
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_model_is_not_replaced(network, tmp_path, kind):
    path = tmp_path / "mine"
    if kind == "file":
        path.write_text("mine")
    else:
        (path / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match="exists and is not a model folder"):
        save_model(path, network, INFO, card="")
    assert path.exists()


def test_empty_folder_is_filled(network, tmp_path):
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", network, INFO, card="")
    assert load_model(tmp_path / "model").info == INFO
