"""Whole runs: the stages, and what each leaves behind."""

import dataclasses
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.config import LPIPSConfig, RunConfig, StageConfig
from unistep.errors import UserError
from unistep.formats.model_folder.folder import load_model
from unistep.generation.generate import generate
from unistep.generation.plan import DiffusionPlan, default_plan
from unistep.networks.adm import UNet
from unistep.networks.song import SongUNet
from unistep.objectives.methods import METHODS
from unistep.training.config import OptimizerConfig
from unistep.workflows.models import open_any
from unistep.workflows.runs.loop import build_accelerator, train_stages
from unistep.workflows.runs.stage_run import StageRun

# Nothing but the stages' ends; and weights that move at once.
SHORT = {"batch_size": 2, "log_every": 1, "ema_decays": (0.5,), "optimizer": OptimizerConfig(lr=1e-3)}

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


def stage(method: str, name: str = "student", **fields) -> StageConfig:
    """stage("cd", init="model", step="euler"): what is no key of a stage is a number of its method."""
    fields = {"steps": 1} | SHORT | fields
    own = {key: fields.pop(key) for key in list(fields) if key in StageConfig.__dataclass_fields__}
    return StageConfig(name=name, method=method, objective=METHODS[method].config(**fields), **own)


def a_run(*stages: StageConfig, **fields) -> RunConfig:
    return RunConfig(stages=stages, precision="fp32", **fields)


def by_teacher(path: Path, method: str = "ect", **fields) -> RunConfig:
    """A run whose one stage begins from a model, which teaches it too."""
    own = {key: fields.pop(key) for key in list(fields) if key in RunConfig.__dataclass_fields__}
    return a_run(stage(method, **{"init": str(path), "teacher": str(path)} | fields), **own)


def train(run: RunConfig, folder: Path) -> Path:
    """The model folder of the last stage."""
    train_stages(run, folder, progress=False)
    return folder / run.stages[-1].name / "model"


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


# ---------------------------------------------------------------------------------------------------------- a whole run


def test_each_run_has_its_own_precision():
    assert build_accelerator("bf16").mixed_precision == "bf16"
    assert build_accelerator("fp32").mixed_precision == "no"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_from_a_model(name, saved, data, tmp_path, caplog):
    """One step of it, from a recipe as short as can be: network, embedding and classes are the model's."""
    caplog.set_level(logging.INFO, "unistep")
    path = saved()
    # A first step of RAdam is as large as the gradient, which 1/(t - r) of close pairs makes large.
    changes = {"pd": {"start_scales": 4, "end_scales": 4}, "tcm": {"ratio": 0.9}}
    changes["dmd2"] = {"critic_steps": 1, "steps": 2, "log_every": 2}  # the first step is the critic's
    steps = changes.get(name, {}).get("steps", 1)
    run = by_teacher(path, name, data=data(), **changes.get(name, {}))
    model = train(run, tmp_path / "run")
    assert str(model) in caplog.messages[-1]
    student, teacher = load_model(model), load_model(path)
    assert student.info.kind == METHODS[name].config().model()["kind"]
    assert student.info.method == METHODS[name].title
    assert student.info.noise_embedding == teacher.info.noise_embedding
    end = METHODS[name].config().network().get("end_embedding", False)
    assert student.config == dataclasses.replace(teacher.config, end_embedding=end) and student.num_classes == 3
    assert 0 < moved(weights(model), weights(path)) < 0.1
    (line,) = logged(model.parent)
    assert line["step"] == steps and np.isfinite(line["loss"])
    assert (model.parent / "samples" / f"step-{steps:08d}.png").is_file()
    plan, images = sample(model)
    assert plan.nfe == {"pd": 4, "edm": 35}.get(name, 1) and images.shape == (3, 1, 8, 8)
    # A finished run is only looked up.
    before = files(tmp_path / "run")
    train(run, tmp_path / "run")
    assert "finished before" in caplog.messages[-1] and files(tmp_path / "run") == before


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.config().needs_teacher])
def test_methods_without_a_teacher_train_from_nothing(name, network, data, tmp_path):
    model = load_model(train(a_run(stage(name), network=network, data=data()), tmp_path / "run"))
    end = METHODS[name].config().network().get("end_embedding", False)
    assert model.info.noise_embedding == "adm" and model.config == dataclasses.replace(network, end_embedding=end)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.yaml", "data.json", "student"]


def test_a_chain_of_three_stages(network, data, tmp_path):
    """Each begins from the model of the one before, and is a folder of its name."""
    stages = (
        stage("edm", name="base"),
        stage("ect", name="mid-training", init="base"),
        stage("scd", name="student", init="mid-training", teacher="base"),
    )
    run = a_run(*stages, network=network, data=data(), noise_embedding="edm")
    train(run, tmp_path / "run")
    base, middle, student = (weights(tmp_path / "run" / s.name / "model") for s in stages)
    assert 0 < moved(base, middle) < 0.1 and 0 < moved(middle, student) < 0.1
    assert open_any(tmp_path / "run").info.method == METHODS["scd"].title


def test_progressive_distillation_leaves_a_model_of_every_phase(saved, data, tmp_path):
    """Each opens, and makes images in the steps that it was distilled for."""
    run = by_teacher(saved(), "pd", start_scales=8, steps=12, data=data())
    model = train(run, tmp_path / "run")
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
    """The saved student reopens, and has the noise embedding of its teacher."""
    scales = {"start_scales": 4, "end_scales": 4} if name == "pd" else {}
    run = by_teacher(edm_pkl(), name, data=data(3, 16, 5), dropout=0.0, **scales)
    model = open_any(train(run, tmp_path / "run"))
    assert isinstance(model.denoiser.network, SongUNet)
    assert model.info.noise_embedding == "edm" and model.num_classes == 5
    assert (model.config.dropout, model.config.augment_dim) == (0.0, 0)  # pyright: ignore
    assert sample(tmp_path / "run")[1].shape == (3, 3, 16, 16)


def test_a_teacher_of_openais_is_distilled(openai_pt, data, tmp_path, monkeypatch):
    monkeypatch.setattr(StageRun, "preview", lambda *_: None)  # 128 images of 32 x 32 take longer than all else
    model = open_any(train(by_teacher(openai_pt(), "cd", data=data(3, 32, 0)), tmp_path / "run"))
    assert isinstance(model.denoiser.network, UNet) and model.info.noise_embedding == "adm"


@pytest.mark.parametrize("name", ["cd", "ect", "sct"])
def test_a_song_teacher_is_trained_and_then_its_student(name, song, data, tmp_path):
    """With augmentation and a null class for the one, with guidance and neither for the other."""
    teacher = stage("edm", name="teacher", steps=2, label_dropout=0.2, augment=0.5)
    student = stage(name, init="teacher", guidance=2.0)
    model = open_any(
        train(a_run(teacher, student, network=replace(song, augment_dim=9), data=data()), tmp_path / "run")
    )
    first = load_model(tmp_path / "run" / "teacher" / "model")
    assert first.info.null_label == 3 and first.num_classes == model.num_classes == 3
    assert first.config == replace(song, augment_dim=9, num_class_embeds=4)
    assert model.config == song and model.info.null_label is None
    assert first.info.noise_embedding == model.info.noise_embedding == "edm"
    assert model.info.method == METHODS[name].title + ", guidance 2"
    learned = first.denoiser.network.state_dict()["map_augment.weight"]
    assert learned.abs().max() > 0
    assert 0 < moved(weights(tmp_path / "run" / "student" / "model"), first.denoiser.network.state_dict()) < 0.1


def test_what_does_not_fit_is_refused_before_anything_is_written(saved, data, network, song, tmp_path):
    labelled, plain = data(), data(classes=0)
    gone = LPIPSConfig(str(tmp_path / "gone.pth"), str(tmp_path / "gone.pth"))
    dropping, teacher = stage("edm", label_dropout=0.1), saved()
    split, lpips = stage("edm", batch_size=3, accumulation=2), stage("ct", distance="lpips")
    for run, message in (
        (a_run(dropping, network=network, data=plain), "label_dropout` needs class labels"),
        (a_run(dropping, network=network, data=labelled, use_labels=False), "label_dropout` needs class labels"),
        (a_run(split, network=network, data=labelled), "cannot be split"),
        (a_run(stage("edm", augment=0.1), network=song, data=labelled), "`network.augment_dim` to 9"),
        (by_teacher(saved("consistency"), data=labelled), "is a consistency model"),
        (by_teacher(teacher, data=data(3, 8, 3)), r"the data \(3, 8, 8\)"),
        (by_teacher(teacher, data=labelled, sigma_data=0.3), "set `sigma_data` to 0.5"),
        (by_teacher(teacher, data=labelled, network=replace(network, layers_per_block=2)), "leave out `network`"),
        (by_teacher(teacher, data=labelled, network=song), "in kind; leave out `network`"),
        (by_teacher(teacher, data=labelled, guidance=2.0), "needs a teacher with a null class"),
        (a_run(stage("edm", name="a"), lpips, data=labelled, lpips=gone, network=network), "gone.pth"),
        (a_run(stage("ct"), network=network, data=replace(labelled, source=wide(tmp_path))), "8x4; set `data.resol"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            train(run, tmp_path / "run")
        assert not (tmp_path / "run").exists() and "\n" not in str(refused.value)


def wide(folder: Path) -> str:
    """Images that are not square."""
    np.savez(folder / "wide.npz", np.zeros((2, 4, 8, 1), np.uint8))
    return str(folder / "wide.npz")
