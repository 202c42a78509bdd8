import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from unistep.build import (
    EMBEDDED,
    EMBEDDED_TEACHER,
    build_accelerator,
    build_network,
    build_student,
    build_teacher,
    claim_folder,
    default_plan,
    network_config,
    open_teacher,
    resolve_model,
    train,
)
from unistep.config import RunConfig, StudentConfig, TeacherConfig, dump
from unistep.data import DataConfig, ImageDataset
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.formats.model_folder import load_model, save_model
from unistep.networks.patched import PatchedUNetConfig
from unistep.objectives.consistency import ConsistencyConfig
from unistep.objectives.denoising import DenoisingConfig
from unistep.pipelines.generate import DiffusionPlan
from unistep.samplers.guidance import Guided

NETWORK = PatchedUNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 8),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attn_norm_num_groups=4,
    attention_head_dim=8,
    num_class_embeds=3,
    patch_size=2,
)
CPU = torch.device("cpu")


def config(**fields) -> RunConfig:
    return RunConfig(**({"network": NETWORK, "teacher": TeacherConfig()} | fields))


def by_teacher(path: Path | str, **fields) -> RunConfig:
    """A run that distills the model at `path`."""
    return RunConfig(network=NETWORK, teacher_model=str(path), student=StudentConfig(**fields))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[..., Path]:
    """saved(kind, null_label, **fields of the network): a model folder of random weights, none of them zero."""

    def save(kind: str = "diffusion", null_label: int | None = None, **fields) -> Path:
        path = tmp_path_factory.mktemp("models") / "model"
        network, noise = build_network(replace(NETWORK, **fields), seed=7), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
        save_model(path, network, ModelInfo(kind, null_label=null_label), card="Random weights.\n")
        return path

    return save


@pytest.fixture(scope="module")
def teacher(saved) -> LoadedModel:
    """Of three classes and the null class."""
    return load_model(saved(null_label=3, num_class_embeds=4))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------------------ networks


def test_a_networks_weights_are_those_of_its_seed(monkeypatch):
    """Whatever was drawn before; and what is drawn afterwards is what it would have been, on GPUs too."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' random state is changed"))
    first = build_network(NETWORK, seed=3).state_dict()
    torch.rand(5)
    before = torch.get_rng_state()
    again = build_network(NETWORK, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, build_network(NETWORK, seed=4).state_dict())


def test_a_network_without_patches_is_what_diffusers_opens(saved):
    assert '"UNet2DModel"' in (saved(patch_size=1) / "model_index.json").read_text()
    assert '"UNet2DModel"' not in (saved(patch_size=2) / "model_index.json").read_text()


def dataset(*shape: int, labels: tuple[int, ...] | None = (0, 4)) -> ImageDataset:
    return ImageDataset(torch.zeros(2, *shape, dtype=torch.uint8), None if labels is None else torch.tensor(labels))


@pytest.mark.parametrize(
    ("use_labels", "labels", "classes"), [(True, (0, 4), 5), (False, (0, 4), None), (True, None, None)]
)
def test_the_data_decides_size_channels_and_classes(use_labels, labels, classes):
    found = network_config(config(use_labels=use_labels), dataset(3, 12, 12, labels=labels))
    assert found == replace(NETWORK, sample_size=12, in_channels=3, out_channels=3, num_class_embeds=classes)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 8, 12), "images are 12x8; set data.res"), ((1, 10, 10), "a multiple of 4 .*; set data.res")],
)
def test_images_that_do_not_fit_the_network(shape, message):
    with pytest.raises(UserError, match=message):
        network_config(config(), dataset(*shape))


# ------------------------------------------------------------------------------------------------- teacher and student


def test_a_student_starts_from_the_teachers_weights_without_the_null_class(teacher):
    before = {name: v.clone() for name, v in teacher.denoiser.network.state_dict().items()}
    stage = StudentConfig(timesteps=(0, 5), num_train_timesteps=20, objective=ConsistencyConfig(sigma_min=0.01, rho=5))
    student, info = build_student(config(sigma_data=0.6), stage, NETWORK, teacher)
    found = student.network.state_dict()
    (name,) = [name for name in found if found[name].shape != before[name].shape]
    assert name.endswith("class_embedding.weight")
    assert same(found, before | {name: before[name][:3]})
    assert all(p.requires_grad for p in student.parameters())
    name = "consistency objective: uniform, same-noise, stop-gradient, l2, uniform, fixed"
    assert info == ModelInfo("consistency", 0.01, 80.0, 5, 0.6, 20, (0, 5), method=name)
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
    assert same(before, teacher.denoiser.network.state_dict())


def test_a_student_of_its_own_starts_from_the_seed(teacher):
    student, _ = build_student(config(seed=9), StudentConfig(from_teacher=False), NETWORK, teacher)
    assert same(student.network.state_dict(), build_network(NETWORK, 9).state_dict())


def test_guidance_wraps_the_teacher_with_its_null_class(teacher):
    assert build_teacher(teacher, ConsistencyConfig(), CPU) is teacher.denoiser
    guided = build_teacher(teacher, ConsistencyConfig(guidance=1.5), CPU)
    x, sigma, labels = torch.ones(2, 1, 8, 8), torch.full((2,), 3.0), torch.tensor([0, 2])
    own, null = teacher.denoiser(x, sigma, labels), teacher.denoiser(x, sigma, torch.tensor([3, 3]))
    assert isinstance(guided, Guided)
    assert (own - null).abs().max() > 1e-3
    torch.testing.assert_close(guided(x, sigma, labels), null + 1.5 * (own - null))


def test_no_teacher_is_opened_where_none_is_named():
    assert open_teacher(config(), NETWORK) is None


def test_a_teacher_that_fits_is_opened(saved):
    path = saved()
    assert open_teacher(by_teacher(path), NETWORK).path == path  # pyright: ignore
    assert open_teacher(by_teacher(saved(layers_per_block=2), from_teacher=False), NETWORK) is not None


@pytest.mark.parametrize(
    ("kind", "fields", "stage", "message"),
    [
        ("consistency", {}, {}, "is a consistency model; give a diffusion model"),
        ("diffusion", {"in_channels": 3, "out_channels": 3}, {}, r"\(3, 8, 8\), the data \(1, 8, 8\)"),
        ("diffusion", {"sample_size": 16}, {}, r"\(1, 16, 16\), the data \(1, 8, 8\)"),
        ("diffusion", {"num_class_embeds": 4}, {}, "number of classes of 4, the data 3"),
        ("diffusion", {"num_class_embeds": None}, {}, "number of classes of 0, the data 3"),
        ("diffusion", {"layers_per_block": 2}, {}, "the same `network`, or set student.from_teacher to false"),
        ("diffusion", {"patch_size": 1}, {}, "the same `network`, or set student.from_teacher to false"),
        ("diffusion", {}, {"objective": ConsistencyConfig(guidance=2)}, "guidance 2 needs a teacher with a null class"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused(saved, kind, fields, stage, message):
    with pytest.raises(UserError, match=message) as refused:
        open_teacher(by_teacher(saved(kind, **fields), **stage), NETWORK)
    assert "\n" not in str(refused.value)


def test_the_null_class_is_not_one_of_the_datas_classes(saved):
    assert open_teacher(by_teacher(saved(null_label=3, num_class_embeds=4)), NETWORK) is not None
    with pytest.raises(UserError, match="number of classes of 2, the data 3"):
        open_teacher(by_teacher(saved(null_label=2)), NETWORK)


# --------------------------------------------------------------------------------------------------------------- plans


def test_a_model_is_sampled_by_its_own_schedule():
    own = ModelInfo("consistency", timesteps=(0, 23), num_train_timesteps=40)
    other = replace(own, timesteps=(0, 5))
    assert default_plan(own).nfe == 1
    assert default_plan(own, 2) != default_plan(other, 2)
    assert default_plan(own, 3) == default_plan(other, 3)
    diffusion = ModelInfo("diffusion", sigma_min=0.01, sigma_max=50, rho=5)
    assert default_plan(diffusion) == DiffusionPlan("heun", 18, 0.01, 50, 5)
    assert default_plan(diffusion, 4) == DiffusionPlan("heun", 4, 0.01, 50, 5)


# ----------------------------------------------------------------------------------------------------- where models are


def test_the_embedded_models_are_there():
    assert resolve_model(None) == EMBEDDED
    assert load_model(EMBEDDED).info.kind == "consistency"
    assert load_model(EMBEDDED_TEACHER).info.kind == "diffusion"


def test_a_model_is_found_by_its_folder_its_stage_and_its_run(saved, tmp_path):
    run = tmp_path / "run"
    for stage in ("teacher", "student"):
        shutil.copytree(saved(), run / stage / "model")
    assert resolve_model(str(run / "teacher" / "model")) == run / "teacher" / "model"
    assert resolve_model(str(run / "teacher")) == run / "teacher" / "model"
    assert resolve_model(str(run)) == run / "student" / "model"
    shutil.rmtree(run / "student")
    assert resolve_model(str(run)) == run / "teacher" / "model"


def test_no_model_is_said_with_what_to_do(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    (tmp_path / "file").touch()
    for name, message in (
        ("begun", "a run without a finished model; go on with: unistep train --resume"),
        ("nowhere", "does not exist; give a model folder or a run directory"),
        (".", "neither a model folder .* nor a run directory"),
        ("file", "neither a model folder .* nor a run directory"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            resolve_model(str(tmp_path / name))
        assert str(tmp_path / name) in str(refused.value) and "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------ run directories


def test_a_run_claims_its_folder_and_finds_it_again(tmp_path):
    folder = tmp_path / "runs" / "a"
    claim_folder(folder, config(seed=1))
    assert files(folder) == {"config.yaml": dump(config(seed=1)).encode()}
    (folder / "student").mkdir()
    claim_folder(folder, config(seed=1))


def test_a_claim_that_was_killed_is_taken_up(tmp_path):
    (tmp_path / "config.tmp").write_text("seed")
    claim_folder(tmp_path, config())
    assert files(tmp_path) == {"config.yaml": dump(config()).encode()}


@pytest.mark.parametrize("name", ["config.yaml", "photo.png"])
def test_a_folder_of_something_else_is_left_untouched(tmp_path, name):
    (tmp_path / name).write_text(dump(config(seed=1)))
    (tmp_path / "student").mkdir()
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds a run with another config|is not a run directory") as refused:
        claim_folder(tmp_path, config(seed=2))
    assert "choose another --output" in str(refused.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_way_is_left_untouched(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose another --output"):
        claim_folder(tmp_path / name, config())
    assert files(tmp_path) == {"file": b"mine"}


# ---------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture
def no_accelerator_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_each_run_has_its_own_precision(no_accelerator_left):
    assert build_accelerator("bf16").mixed_precision == "bf16"
    assert build_accelerator("fp32").mixed_precision == "no"


def test_what_does_not_fit_is_refused_before_anything_is_written(no_accelerator_left, saved, tmp_path):
    np.savez(tmp_path / "labelled.npz", np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 2]))
    np.savez(tmp_path / "plain.npz", np.zeros((4, 8, 8, 1), np.uint8))
    labelled, plain = (DataConfig(str(tmp_path / f"{name}.npz")) for name in ("labelled", "plain"))
    dropping = TeacherConfig(objective=DenoisingConfig(label_dropout=0.1))
    for run, message in (
        (config(data=plain, teacher=dropping), "label_dropout needs class labels"),
        (config(data=labelled, teacher=dropping, use_labels=False), "label_dropout needs class labels"),
        (config(data=labelled, teacher=TeacherConfig(batch_size=3, accumulation=2)), "cannot be split"),
        (replace(by_teacher(saved("consistency")), data=labelled), "is a consistency model"),
    ):
        with pytest.raises(UserError, match=message):
            train(run, tmp_path / "run", say=pytest.fail)
        assert not (tmp_path / "run").exists()
