"""Whole runs: the directory, the stages, and what each leaves behind."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.config import RunConfig, StudentConfig, TeacherConfig, dump
from unistep.errors import UserError
from unistep.formats.model_folder.folder import load_model
from unistep.formats.published.lpips import LPIPSConfig
from unistep.generation.generate import generate
from unistep.generation.plan import DiffusionPlan, default_plan
from unistep.networks.adm import UNet
from unistep.networks.song import SongUNet
from unistep.objectives.consistency import ConsistencyConfig
from unistep.objectives.continuous import ContinuousConfig
from unistep.objectives.denoising import DenoisingConfig
from unistep.objectives.methods import METHODS, method_name
from unistep.objectives.progressive import ProgressiveConfig
from unistep.training.optimizer import OptimizerConfig
from unistep.workflows import train as module
from unistep.workflows.models import open_any
from unistep.workflows.train import build_accelerator, claim_folder, train

KEYS = {ConsistencyConfig: "objective", ContinuousConfig: "continuous", ProgressiveConfig: "progressive"}
# Nothing but the stages' ends; and weights that move at once.
SHORT = {"batch_size": 2, "log_every": 1, "ema_decays": (0.5,), "optimizer": OptimizerConfig(lr=1e-3)}


def a_run(**fields) -> RunConfig:
    return RunConfig(**({"teacher": TeacherConfig()} | fields))


def student_of(method, **fields) -> StudentConfig:
    return StudentConfig(**({"steps": 1, KEYS[type(method)]: method} | SHORT | fields))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).denoiser.network.state_dict()


def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest change of a weight that both have."""
    return max(float((a[name] - b[name]).abs().max()) for name in a.keys() & b.keys() if a[name].shape == b[name].shape)


def sample(path: Path, count: int = 3) -> tuple[DiffusionPlan, torch.Tensor]:
    """Images as `unistep sample` makes them by default."""
    model = open_any(path)
    plan = default_plan(model.info)
    labels = torch.arange(count) % model.num_classes if model.num_classes else None
    (images,) = generate(model.denoiser, plan, model.image_shape, range(count), labels=labels)
    return plan, images


# ------------------------------------------------------------------------------------------------------ run directories


def test_a_run_claims_its_folder_and_finds_it_again(tmp_path):
    folder = tmp_path / "runs" / "a"
    claim_folder(folder, a_run(seed=1))
    assert files(folder) == {"config.yaml": dump(a_run(seed=1)).encode()}
    (folder / "student").mkdir()
    claim_folder(folder, a_run(seed=1))


def test_a_claim_that_was_killed_is_taken_up(tmp_path):
    (tmp_path / "config.tmp").write_text("seed")
    claim_folder(tmp_path, a_run())
    assert files(tmp_path) == {"config.yaml": dump(a_run()).encode()}


@pytest.mark.parametrize("name", ["config.yaml", "photo.png"])
def test_a_folder_of_something_else_is_left_untouched(tmp_path, name):
    (tmp_path / name).write_text(dump(a_run(seed=1)))
    (tmp_path / "student").mkdir()
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds a run with another config|is not a run directory") as refused:
        claim_folder(tmp_path, a_run(seed=2))
    assert "choose another --output" in str(refused.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_way_is_left_untouched(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose another --output"):
        claim_folder(tmp_path / name, a_run())
    assert files(tmp_path) == {"file": b"mine"}


# ---------------------------------------------------------------------------------------------------------- a whole run


pytestmark = pytest.mark.usefixtures("no_accelerator_left")


def test_each_run_has_its_own_precision():
    assert build_accelerator("bf16").mixed_precision == "bf16"
    assert build_accelerator("fp32").mixed_precision == "no"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_from_a_teacher(name, saved, data, tmp_path):
    """One step of it, from a recipe as short as can be: network, embedding and classes are the teacher's."""
    method = replace(METHODS[name], start_scales=4, end_scales=4) if name == "pd" else METHODS[name]
    path = saved()
    run = RunConfig(teacher_model=str(path), data=data(), student=student_of(method), precision="fp32")
    said: list[str] = []
    model = train(run, tmp_path / "run", say=said.append)
    assert model == tmp_path / "run" / "student" / "model" and str(model) in said[-1]
    student, teacher = load_model(model), load_model(path)
    assert student.info.kind == ("diffusion" if name == "pd" else "consistency")
    assert student.info.method == method_name(method)
    assert student.info.noise_embedding == teacher.info.noise_embedding
    assert student.config == teacher.config and student.num_classes == 3
    assert 0 < moved(weights(model), weights(path)) < 0.1
    (line,) = logged(model.parent)
    assert line["step"] == 1 and np.isfinite(line["loss"])
    assert (model.parent / "samples" / "step-00000001.png").is_file()
    plan, images = sample(model)
    assert plan.nfe == (4 if name == "pd" else 1) and images.shape == (3, 1, 8, 8)
    # A finished run is only looked up.
    before = files(tmp_path / "run")
    assert train(run, tmp_path / "run", say=said.append) == model and "finished before" in said[-1]
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs_teacher])
def test_methods_without_a_teacher_train_from_nothing(name, network, data, tmp_path):
    student = student_of(METHODS[name], from_teacher=False)
    run = RunConfig(network=network, data=data(), student=student, precision="fp32")
    model = load_model(train(run, tmp_path / "run", say=lambda line: None))
    assert model.info.noise_embedding == "adm" and model.config == network
    assert not (tmp_path / "run" / "teacher").exists()


def test_progressive_distillation_leaves_a_model_of_every_phase(saved, data, tmp_path):
    """Each opens, and makes images in the steps that it was distilled for."""
    student = student_of(ProgressiveConfig(8), steps=12)
    run = RunConfig(teacher_model=str(saved()), data=data(), student=student, precision="fp32")
    model = train(run, tmp_path / "run", say=lambda line: None)
    folder = model.parent
    names = sorted(p.name for p in folder.glob("model*"))
    assert names == ["model", "model-1-steps", "model-2-steps", "model-4-steps", "model-8-steps"]
    found = []
    for steps in (8, 4, 2, 1):
        path = folder / f"model-{steps}-steps"
        info = open_any(path).info
        assert (info.kind, info.solver, info.steps) == ("diffusion", "progressive", steps)
        plan, images = sample(path)
        assert plan == DiffusionPlan("progressive", steps) and plan.nfe == default_plan(info).steps == steps
        assert images.shape == (3, 1, 8, 8)
        found.append(weights(path))
        evaluations = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
        card = (path / "README.md").read_text()
        assert f"distilled diffusion model: maps noise to an image in {evaluations}." in card
    assert all(moved(a, b) > 0 for a, b in zip(found, found[1:], strict=False))
    assert moved(weights(model), found[-1]) == 0 and load_model(model).info.steps == 1
    assert [line["num_scales"] for line in logged(folder)] == [8, 8, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1]
    for steps, done in ((8, 2), (4, 4), (2, 8), (1, 12)):  # the card tells the steps it took to come so far
        assert f"Compute: {done} steps," in (folder / f"model-{steps}-steps" / "README.md").read_text()


@pytest.mark.parametrize("name", ["cd", "pd", "scd"])
def test_a_teacher_of_edms_is_distilled(name, edm_pkl, data, tmp_path):
    """The saved student reopens, and is told the noise level as its teacher is."""
    method = replace(METHODS[name], start_scales=4, end_scales=4) if name == "pd" else METHODS[name]
    source = data(3, 16, 5)
    run = RunConfig(
        teacher_model=str(edm_pkl()), data=source, student=student_of(method, dropout=0.0), precision="fp32"
    )
    model = open_any(train(run, tmp_path / "run", say=lambda line: None))
    assert isinstance(model.denoiser.network, SongUNet)
    assert model.info.noise_embedding == "edm" and model.num_classes == 5
    assert (model.config.dropout, model.config.augment_dim) == (0.0, 0)  # pyright: ignore
    assert sample(tmp_path / "run")[1].shape == (3, 3, 16, 16)


def test_a_teacher_of_openais_is_distilled(openai_pt, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module._Stage, "preview", lambda *_: None)  # 128 images of 32 x 32 take longer than all else
    run = RunConfig(
        teacher_model=str(openai_pt()), data=data(3, 32, 0), student=student_of(METHODS["cd"]), precision="fp32"
    )
    model = open_any(train(run, tmp_path / "run", say=lambda line: None))
    assert isinstance(model.denoiser.network, UNet) and model.info.noise_embedding == "adm"


@pytest.mark.parametrize("name", ["cd", "ect", "sct"])
def test_a_song_teacher_is_trained_and_then_its_student(name, song, data, tmp_path):
    """With augmentation and a null class for the one, with guidance and neither for the other."""
    teacher = TeacherConfig(steps=2, objective=DenoisingConfig(label_dropout=0.2, augment=0.5), **SHORT)
    student = student_of(replace(METHODS[name], guidance=2.0))
    run = RunConfig(song=replace(song, augment_dim=9), data=data(), teacher=teacher, student=student, precision="fp32")
    model = open_any(train(run, tmp_path / "run", say=lambda line: None))
    first = load_model(tmp_path / "run" / "teacher" / "model")
    assert first.info.null_label == 3 and first.num_classes == model.num_classes == 3
    assert first.config == replace(song, augment_dim=9, num_class_embeds=4)
    assert model.config == song and model.info.null_label is None
    assert first.info.noise_embedding == model.info.noise_embedding == "edm"
    assert model.info.method == method_name(METHODS[name]) + ", guidance 2"
    learned = first.denoiser.network.state_dict()["map_augment.weight"]
    assert learned.abs().max() > 0
    assert 0 < moved(weights(tmp_path / "run" / "student" / "model"), first.denoiser.network.state_dict()) < 0.1


def test_what_does_not_fit_is_refused_before_anything_is_written(saved, data, network, song, tmp_path):
    labelled, plain = data(), data(classes=0)
    dropping = TeacherConfig(objective=DenoisingConfig(label_dropout=0.1))
    by_teacher = RunConfig(teacher_model=str(saved()), data=labelled, student=student_of(ConsistencyConfig()))
    guided = student_of(ConsistencyConfig(guidance=2.0))
    augmenting = TeacherConfig(objective=DenoisingConfig(augment=0.1))
    lpips = student_of(replace(METHODS["cd"], distance="lpips"))
    gone = LPIPSConfig(str(tmp_path / "gone.pth"), str(tmp_path / "gone.pth"))
    for run, message in (
        (a_run(network=network, data=plain, teacher=dropping), "label_dropout needs class labels"),
        (a_run(network=network, data=labelled, teacher=dropping, use_labels=False), "label_dropout needs class labels"),
        (a_run(network=network, data=labelled, teacher=TeacherConfig(batch_size=3, accumulation=2)), "cannot be split"),
        (a_run(song=song, data=labelled, teacher=augmenting), "set song.augment_dim to 9"),
        (replace(by_teacher, teacher_model=str(saved("consistency"))), "is a consistency model"),
        (replace(by_teacher, data=data(3, 8, 3)), r"the data \(3, 8, 8\)"),
        (replace(by_teacher, sigma_data=0.3), "set sigma_data to 0.5"),
        (replace(by_teacher, network=replace(network, layers_per_block=2)), "leave out `network` and `song`"),
        (replace(by_teacher, song=song), "leave out `network` and `song`"),
        (replace(by_teacher, student=guided), "needs a teacher with a null class"),
        (a_run(data=labelled, student=lpips, lpips=gone), "gone.pth"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            train(run, tmp_path / "run", say=pytest.fail)
        assert not (tmp_path / "run").exists() and "\n" not in str(refused.value)
