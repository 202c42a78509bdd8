import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unistep
from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.cli.main import COMMANDS
from unistep.errors import UserError
from unistep.formats.edm import file as edm
from unistep.formats.hub import download as hub
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.formats.openai.file import load_openai
from unistep.networks.adm import UNetConfig
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.workflows.models import EMBEDDED
from unistep.workflows.runs.network import build_network

CHECKPOINTS = ["openai_unet_class_scale_shift", "openai_unet_uncond_additive"]
# The least that OpenAI's layout can hold.
SMALL = UNetConfig(
    sample_size=32,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    downsample_type="conv",
    upsample_type="conv",
)
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of fp32 that can become a .pt."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_model(path, build_network(SMALL, 0), ModelInfo(), card="")
    return path


def test_is_a_command():
    assert "convert" in COMMANDS


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("kind", "result"), [("consistency", "consistency_out"), ("diffusion", "edm_denoised")])
def test_published_outputs_after_conversion(golden: Any, run: Any, here: Path, name: str, kind: str, result: str):
    source = golden.path(f"{name}.pt")
    outcome = run("convert", source, "model", "--attention-head-dim", 32, "--kind", kind)
    assert outcome.code == 0, outcome
    model = load_model(here / "model")
    assert model.info == ModelInfo(kind=kind)
    assert model.dtype == torch.float16
    values = golden.tensors(f"{name}_values.npz")
    expected = values[result]
    out = model.denoiser(values["x_t"], values["sigma"], values.get("class_labels"))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    net_out = model.denoiser.network(values["x"], values["t"], values.get("class_labels"))
    torch.testing.assert_close(net_out, values["net_out"], rtol=1e-5, atol=1e-5 * values["net_out"].abs().max().item())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_images_by_the_pipeline(golden: Any, run: Any, here: Path, name: str):
    flags = ["--attention-head-dim", 32, "--kind", "consistency", "--sample-size", 32]
    assert run("convert", golden.path(f"{name}.pt"), "model", *flags).code == 0
    pipe = ConsistencyModelPipeline.from_pretrained(here / "model")
    values = golden.tensors(f"{name}_values.npz")
    labels = values.get("class_labels")
    for i, sigma in enumerate(values["sigma"].tolist()):
        # One step from a model whose noise begins at this level.
        pipe.scheduler = CMStochasticIterativeScheduler(sigma_max=sigma, clip_denoised=False)
        call = {"latents": values["x_t"][i : i + 1] / sigma, "output_type": "pt"}
        image = pipe(class_labels=None if labels is None else labels[i : i + 1], **call).images
        expected = (values["consistency_out"][i : i + 1] / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_there_and_back_is_the_same_file(golden: Any, run: Any, here: Path, name: str):
    original = torch.load(golden.path(f"{name}.pt"), weights_only=True)
    assert run("convert", golden.path(f"{name}.pt"), "folder", "--attention_head_dim=32").code == 0
    assert run("convert", "folder", "new/again.pt").code == 0
    again = torch.load(here / "new" / "again.pt", weights_only=True)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in original.items())


def test_what_it_prints(run: Any, here: Path, small: Path):
    parameters = f"{sum(p.numel() for p in build_network(SMALL, 0).parameters()):,} parameters"
    outcome = run("convert", small, "cd_imagenet64_l2.pt")
    assert outcome.out.splitlines() == [
        f"cd_imagenet64_l2.pt: OpenAI .pt, fp32, {parameters}",
        f"from {small}: model folder, consistency model of 32x32x3 images",
    ]
    assert outcome.err == "note: open cd_imagenet64_l2.pt with --sample-size 32: the file does not tell it\n"
    outcome = run("convert", "cd_imagenet64_l2.pt", "folder", "--dtype", "bf16", "--sample_size", 32)
    assert outcome.out.splitlines() == [
        f"folder: model folder, bf16, {parameters}",
        "from cd_imagenet64_l2.pt: OpenAI .pt, consistency model of 32x32x3 images",
    ]
    assert outcome.err == "note: by its name the file is of consistency distillation, l2, 40 noise levels\n"


def test_what_a_pt_does_not_keep_is_said(run: Any, here: Path, small: Path):
    save_model(here / "model", build_network(SMALL, 0), ModelInfo("diffusion", sigma_max=50), card="")
    err = run("convert", "model", "teacher.pt", "--dtype", "fp16").err
    assert "note: open teacher.pt with --kind diffusion, --sample-size 32: the file does not tell it\n" in err
    assert "note: teacher.pt does not keep sigma_max 50\n" in err


def test_the_schedule_that_a_name_tells_goes_into_the_folder(run: Any, here: Path, small: Path):
    run("convert", small, "ct_cat256.pt")
    run("convert", "ct_cat256.pt", "cats")
    assert load_model(here / "cats").info == ModelInfo(
        num_train_timesteps=151, timesteps=(0, 62), method="consistency training"
    )
    card = (here / "cats" / "README.md").read_text()
    assert "# cats" in card
    assert "converted from ct_cat256.pt (OpenAI .pt, consistency training)" in card
    assert json.loads((here / "cats" / "model_index.json").read_text())["_class_name"] == "ConsistencyModelPipeline"


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ([], torch.float16),
        (["--dtype", "fp32"], torch.float32),
        (["--dtype", "bf16"], torch.bfloat16),
        (["--dtype", "fp16"], torch.float16),
    ],
)
def test_dtypes(golden: Any, run: Any, here: Path, small: Path, flags: list[str], dtype: torch.dtype):
    run("convert", golden.path(f"{CHECKPOINTS[1]}.pt"), "model", "--attention_head_dim", 32, *flags)
    assert {tensor.dtype for tensor in load_file(here / "model" / WEIGHTS).values()} == {dtype}
    run("convert", "model", "model.pt")
    assert {tensor.dtype for tensor in torch.load("model.pt", weights_only=True).values()} == {dtype}


def test_double_precision_becomes_single(run: Any, here: Path, small: Path):
    run("convert", small, "m.pt")
    torch.save({name: t.double() for name, t in torch.load("m.pt", weights_only=True).items()}, "double.pt")
    assert ", fp32," in run("convert", "double.pt", "model").out
    assert {tensor.dtype for tensor in load_file(here / "model" / WEIGHTS).values()} == {torch.float32}


def test_edm_networks(run: Any, here: Path, monkeypatch: pytest.MonkeyPatch, refused: Any):
    network = SongUNet(SongUNetConfig(sample_size=8, model_channels=32, channel_mult=(1,), num_blocks=1))
    info = ModelInfo("diffusion", preconditioning="vp", noise_embedding="edm", beta_d=19.0)
    teacher = LoadedModel(precondition(network, info).eval(), info, network.config, here / "vp.pkl", "EDM pickle")
    monkeypatch.setattr(edm, "load_edm", lambda path, device: teacher)
    (here / "vp.pkl").write_bytes(b"\x80\x04.")
    refused(["convert", "vp.pkl", "vp.pt"], "vp.pt: OpenAI's files hold ADM U-Nets alone", "SongUNet")
    assert run("convert", "vp.pkl", "vp").code == 0
    model = load_model(here / "vp")
    assert model.info == info
    x, sigma = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 10.0])
    with torch.no_grad():
        assert torch.equal(model.denoiser(x, sigma), teacher.denoiser(x, sigma))


def test_runs_and_the_hub(run: Any, here: Path, small: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "run" / "student").mkdir(parents=True)
    shutil.copytree(small, here / "run" / "student" / "model")
    assert run("convert", "run", "a").code == 0
    assert (here / "a" / WEIGHTS).read_bytes() == (small / WEIGHTS).read_bytes()

    calls = []

    def fetch(model_id: str, **options: Any) -> Path:
        calls.append((model_id, options["revision"], options["cache_dir"], options["local_files_only"]))
        return small

    monkeypatch.setattr(hub, "fetch_folder", fetch)
    outcome = run("convert", "me/cats", "b", "--revision", "v1", "--cache-dir", "cache", "--local-files-only")
    assert calls == [("me/cats", "v1", "cache", True)]
    assert outcome.out.splitlines()[1] == "from me/cats: model folder, consistency model of 32x32x3 images"
    assert "converted from me/cats (model folder)" in (here / "b" / "README.md").read_text()


def test_older_models_are_replaced(run: Any, here: Path, small: Path, golden: Any):
    shutil.copytree(EMBEDDED, here / "model")
    assert run("convert", small, "model").code == 0
    assert load_model(here / "model").image_shape == (3, 32, 32)
    shutil.copy(golden.path(f"{CHECKPOINTS[0]}.pt"), "model.pt")
    assert run("convert", small, "model.pt").code == 0
    assert load_openai("model.pt").config.block_out_channels == (32, 64)
    (here / "empty").mkdir()
    assert run("convert", small, "empty").code == 0
    assert sorted(p.name for p in here.iterdir()) == ["empty", "model", "model.pt"]


def test_what_is_no_model_is_not_replaced(refused: Any, here: Path, small: Path):
    for name in ("notes.txt", "notes.pt", "web.pt"):
        (here / name).write_text("<html>" if name == "web.pt" else "important")
    (here / "photos").mkdir()
    (here / "photos" / "1.png").touch()
    (here / "folder.pt").mkdir()
    (here / "notes").write_text("important")
    refused(["convert", small, "notes.txt"], "cannot write .txt files; give a folder, or a name that ends in .pt")
    refused(["convert", small, "notes"], "notes exists and is no model folder")
    refused(["convert", small, "notes.pt"], "notes.pt exists and is no OpenAI .pt")
    refused(["convert", small, "web.pt"], "web.pt exists and is no OpenAI .pt")
    refused(["convert", small, "photos"], "photos exists and is no model folder")
    refused(["convert", small, "folder.pt"], "folder.pt is a folder")
    for target in ("notes.txt/model.pt", "notes.txt/model", "notes.txt/new/model"):
        refused(["convert", small, target], f"cannot write {target}: notes.txt is no folder and cannot be made one")


def test_a_model_is_not_converted_onto_itself(refused: Any, here: Path, small: Path, run: Any):
    shutil.copytree(small, here / "model")
    run("convert", "model", "model/weights.pt")
    (here / "link").symlink_to("model")
    refused(["convert", "model", "model"], "model is or holds the source model; choose another target")
    refused(["convert", "model", here / "model", "--dtype", "fp16"], "is or holds the source")
    refused(["convert", "link", "model"], "is or holds the source")
    refused(["convert", "model/weights.pt", "model"], "is or holds the source")
    refused(["convert", "model/weights.pt", "model/weights.pt"], "is or holds the source")


def test_nothing_is_written_where_it_cannot_be_done(refused: Any, here: Path, small: Path, golden: Any):
    pt = golden.path(f"{CHECKPOINTS[0]}.pt")
    refused(["convert", EMBEDDED, "model.pt"], "model.pt: OpenAI's files hold ADM U-Nets alone", "PatchedUNet")
    refused(["convert", pt, "model"], "attention_head_dim: 64 does not divide the width 96")
    refused(["convert", pt, "model", "--attention_head_dim", 0], "attention_head_dim: 0 is neither")
    refused(
        ["convert", pt, "model", "--attention_head_dim", 32, "--sample_size", 30], "sample_size 30 is not a multiple"
    )
    refused(["convert", small, "model", "--kind", "diffusion"], "is a consistency model; leave it out")
    refused(["convert", small, "model", "--sample_size", 64], "--sample-size 64 is for an OpenAI .pt")
    refused(["convert", "nowhere.pt", "model"], "nowhere.pt does not exist")
    (here / "broken.pt").write_bytes(pt.read_bytes()[:-10])
    refused(["convert", "broken.pt", "model"], "broken.pt is a zip file that is cut short")


def test_folders_may_be_called_anything(here: Path, small: Path, run: Any):
    for name in ("v1.5", "model.onnx/"):
        assert run("convert", small, name).code == 0
        assert (here / name / "model_index.json").exists()
    assert run("convert", small, "model.onnx").code == 0  # a model folder of that name is there


def test_from_python(here: Path, small: Path, caplog: pytest.LogCaptureFixture):
    made = unistep.convert(small, here / "small.pt")
    assert repr(made) == f"Conversion({here / 'small.pt'}: OpenAI .pt, fp32)"
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    assert made.notes == ("open small.pt with `sample_size=32`: the file does not tell it",)
    assert "small.pt" in made._repr_html_()
    again = unistep.convert(ConsistencyModelPipeline.from_pretrained(small), here / "again", dtype="bf16")
    assert (again.source, again.format, again.dtype, again.notes) == ("pipeline", "model folder", "bf16", ())
    with pytest.raises(UserError, match="`target` is empty"):
        unistep.convert(small, "")


@pytest.mark.parametrize("target", ["model", "model.pt"])
def test_weights_beyond_half_precision(refused: Any, here: Path, run: Any, target: str):
    network = build_network(SMALL, 0)
    network.conv_out.bias.data.fill_(1e6)  # pyright: ignore
    save_model(here / "large", network, ModelInfo(), card="")
    refused(["convert", "large", target, "--dtype", "fp16"], "not finite as float16; it was not written")
    assert run("convert", "large", target, "--dtype", "bf16").code == 0


def test_command_lines_that_are_not_understood(refused: Any, here: Path, run: Any):
    refused(["convert"], "SOURCE is missing")
    refused(["convert", "model"], "TARGET is missing")
    for empty in ("", " "):
        refused(["convert", EMBEDDED, empty], "TARGET is empty; give a folder or a file")
    refused(["convert", "a", "b", "c"], "c")
    refused(["convert", "a", "b", "--dtype", "fp8"], "--dtype fp8: must be one of fp32, fp16, bf16")
    refused(["convert", "a", "b", "--kind", "teacher"], "--kind teacher: must be one of consistency, diffusion")
    refused(["convert", "a", "b", "--sample-size", "big"], "--sample-size big: expected int")
    refused(["convert", "a", "b", "--atention_head_dim", "3"], "did you mean --attention-head-dim?")
    for suffix in (".pkl", ".safetensors", ".pth", ".ckpt", ".bin", ".zip", ".onnx", ".x"):
        refused(["convert", EMBEDDED, f"model{suffix}"], f"cannot write {suffix} files; give a folder, or a name that")
    help_ = run("convert", "--help")
    assert help_.code == 0 and "unistep convert SOURCE TARGET [options]" in help_.out
