"""The model that is measured while it trains: which images are compared, by how many processes, and what is kept."""

import json
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from unistep.config import RunConfig, StageConfig, dump
from unistep.data import DataConfig, ImageDataset, open_dataset
from unistep.errors import UserError
from unistep.formats.model_folder.folder import load_model
from unistep.generation.generate import generate
from unistep.generation.labels import random_labels
from unistep.generation.plan import default_plan
from unistep.metrics.config import EvaluationConfig
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.mnist import MNIST
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.kernel import kernel_distance
from unistep.metrics.moments import moments
from unistep.objectives.methods import METHODS
from unistep.runtime.processes import Processes
from unistep.training.config import OptimizerConfig
from unistep.training.evaluation import Best
from unistep.workflows.models import open_any
from unistep.workflows.runs.evaluation import TrainingEvaluation, open_evaluation
from unistep.workflows.runs.folder import claim_folder
from unistep.workflows.runs.loop import build_accelerator, train_stages
from unistep.workflows.runs.stage_run import StageRun

SCRIPT = Path(__file__).with_name("train_process.py")
DEADLINE = 120
FEW = EvaluationConfig(num_images=40, reference_images=90)
SHORT = {"steps": 3, "batch_size": 2, "log_every": 1, "ema_decays": (0.5,), "optimizer": OptimizerConfig(lr=3e-3)}

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


@pytest.fixture(autouse=True)
def no_previews(monkeypatch):
    """They would take longer than all else."""
    monkeypatch.setattr(StageRun, "preview", lambda *_: None)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    whole = open_dataset("mnist-test")
    return ImageDataset(whole.images[:100], whole.labels[:100] if whole.labels is not None else None)


@pytest.fixture(scope="module")
def source(digits, tmp_path_factory) -> DataConfig:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, digits.images.numpy(), digits.labels.numpy())
    return DataConfig(str(path))


@pytest.fixture
def a_run(network, source) -> Callable[..., RunConfig]:
    """a_run(**fields): a consistency model from nothing, measured after each of its three steps."""

    def make(**fields) -> RunConfig:
        student = StageConfig(name="student", method="ect", **SHORT)
        usual = {"network": network, "data": source, "stages": (student,), "precision": "fp32"}
        return RunConfig(**(usual | {"evaluate_every": 1, "evaluation": FEW} | fields))

    return make


@pytest.fixture
def measured(digits) -> Callable[..., Estimate]:
    """measured(path, config, data=digits): of a model folder, by one process."""

    def measure(path: Path, config: EvaluationConfig, data: ImageDataset = digits) -> Estimate:
        evaluation = TrainingEvaluation(config, data, MNIST(), build_accelerator("fp32"), Processes())
        evaluation.prepare(lambda line: None)
        model = load_model(path)
        return evaluation.measure(model.denoiser, model.info)

    return measure


def train(run: RunConfig, folder: Path) -> Path:
    """The model folder of the last stage."""
    train_stages(run, folder, progress=False)
    return folder / run.stages[-1].name / "model"


def evaluations(stage: Path, name: str = "KD-MNIST") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


# ----------------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize(("kind", "null_label"), [("consistency", None), ("diffusion", 10)])
@pytest.mark.parametrize("metric", ["kd", "fd"])
def test_the_number_is_that_of_the_images_of_the_seed(kind, null_label, metric, measured, saved, digits):
    """Image i has noise i and class i of the run, as `unistep sample` makes it, and the null class is none."""
    path = saved(kind, null_label, sample_size=28, num_class_embeds=10 + (null_label is not None))
    steps = 2 if kind == "consistency" else 1
    config = EvaluationConfig(num_images=70, reference_images=100, metric=metric, steps=steps, seed=3)
    model = load_model(path)
    assert model.num_classes == 10
    images = generate(
        model.denoiser,
        default_plan(model.info, steps),
        model.image_shape,
        range(70),
        seed=3,
        labels=random_labels(3, range(70), 10),
    )
    made, real = (MNIST()(x, ("pool",))["pool"] for x in (torch.cat(list(images)), digits.images))
    if metric == "kd":
        expected = kernel_distance(made, real).value
    else:
        a, b = moments(made), moments(real)
        expected = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    found = measured(path, config)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert 0 < found.standard_error < found.value


def test_the_reference_is_drawn_from_the_whole_data(measured, saved, digits):
    """Data are often sorted by class: neither its beginning is taken, nor one image twice."""
    path = saved("consistency", sample_size=28, num_class_embeds=10)
    half = replace(FEW, reference_images=50)
    beginning = ImageDataset(digits.images[:50], digits.labels[:50])
    numbers = [measured(path, config).value for config in (half, replace(half, seed=1))]
    assert len({*numbers, measured(path, half, beginning).value}) == 3
    # All of it is the same whatever the order they are drawn in.
    everything = [measured(path, replace(FEW, reference_images=n)).value for n in (100, 10_000)]
    assert everything[0] == everything[1]


def test_the_model_computes_as_it_trains_and_the_features_do_not(saved, digits, monkeypatch):
    """The images under autocast, as previews are; no number is measured in bf16."""
    seen: dict[str, bool] = {}
    path = saved("consistency", sample_size=28, num_class_embeds=10)
    model, network = load_model(path), MNIST()

    class Watched:
        info = network.info

        def __call__(self, images, kinds):
            seen["features"] = torch.is_autocast_enabled("cpu")
            return network(images, kinds)

    model.denoiser.register_forward_hook(lambda *_: seen.update(model=torch.is_autocast_enabled("cpu")))
    evaluation = TrainingEvaluation(FEW, digits, Watched(), build_accelerator("bf16"), Processes())
    evaluation.prepare(lambda line: None)
    evaluation.measure(model.denoiser, model.info)
    assert seen == {"model": True, "features": False}


# ---------------------------------------------------------------------------------------------------------- a whole run


def test_the_best_model_opens_and_says_its_figure(a_run, measured, tmp_path, caplog):
    caplog.set_level(logging.INFO, "unistep")
    model = train(a_run(), tmp_path / "run")
    said = list(caplog.messages)
    lines = evaluations(tmp_path / "run" / "student")
    assert [line["step"] for line in lines] == [1, 2, 3]
    best = min(lines, key=lambda line: line["KD-MNIST"])
    folder = tmp_path / "run" / "student" / "best"
    opened = open_any(folder)
    assert opened.info == load_model(model).info and opened.num_classes == 10
    again = measured(folder, FEW)  # the very model whose figure it is
    assert (again.value, *again.interval) == tuple(best[f"KD-MNIST{end}"] for end in ("", "/low", "/high"))
    card = (folder / "README.md").read_text()
    assert f"Quality: KD-MNIST {again} (95% interval), of 40 images in one network evaluation each" in card
    assert "against 90 of the data" in card and f"Compute: {best['step']} steps," in card
    assert "Quality" not in (model / "README.md").read_text()
    assert said[0] == "evaluation: features of 90 images of the data, by mnist"
    assert said[-1] == f"student: best KD-MNIST {again} at step {best['step']}, {folder}"


def test_a_teacher_alone_is_measured_and_not_one_beside_a_student(a_run, tmp_path):
    teacher = StageConfig(name="teacher", method="edm", **SHORT)
    few = replace(FEW, steps=1, metric="fd")
    train(a_run(stages=(teacher,), evaluation=few), tmp_path / "alone")
    (folder,) = (p.parent for p in (tmp_path / "alone").rglob("best"))
    assert folder.name == "teacher" and len(evaluations(folder, "FD-MNIST")) == 3
    assert open_any(folder / "best").info.kind == "diffusion"
    student = StageConfig(name="student", method="ect", init="teacher", **SHORT)
    train(a_run(stages=(teacher, student)), tmp_path / "both")
    assert [p.parent.name for p in (tmp_path / "both").rglob("best")] == ["student"]


def test_progressive_distillation_is_measured_in_the_steps_it_ends_with(a_run, saved, measured, tmp_path):
    """Else its first phases would be the best."""
    path = saved(sample_size=28, num_class_embeds=10)
    objective = METHODS["pd"].config(start_scales=2)
    student = StageConfig(name="student", method="pd", init=str(path), objective=objective, **(SHORT | {"steps": 4}))
    train(a_run(network=None, stages=(student,), evaluate_every=2), tmp_path / "run")
    stage = tmp_path / "run" / "student"
    assert default_plan(load_model(stage / "best").info).nfe == 1
    found = {line["step"]: line["KD-MNIST"] for line in evaluations(stage)}
    assert found.keys() == {2, 4}
    assert measured(stage / "best", FEW).value == min(found.values())
    (stage / "model-2-steps" / "scheduler" / "scheduler_config.json").write_bytes(
        (stage / "model" / "scheduler" / "scheduler_config.json").read_bytes()
    )
    assert measured(stage / "model-2-steps", FEW).value == found[2]


def test_what_cannot_be_measured_is_refused_before_anything_is_written(a_run, data, network, tmp_path):
    wide = data(channels=1, size=8, classes=3)
    for run, message in (
        (a_run(evaluation=replace(FEW, features="mnits")), "`evaluation.features` mnits: .*did you mean mnist"),
        (
            a_run(evaluation=replace(FEW, features="onnx:gone.onnx")),
            "`evaluation.features` onnx:.*: .*gone.onnx",
        ),
        (
            a_run(evaluation=replace(FEW, features="inception", features_path="gone.pt")),
            "`evaluation.features` inception: .*gone.pt",
        ),
        (a_run(data=wide), "`evaluate_every` needs 20 images to compare with, and .*images.npz has 6"),
        (
            a_run(data=replace(a_run().data, resolution=16), evaluation=replace(FEW, features="mnist")),
            "`evaluation.features` mnist: mnist takes grey images of 28x28",
        ),
    ):
        with pytest.raises(UserError, match=message) as refused:
            train(run, tmp_path / "run")
        assert not (tmp_path / "run").exists() and "\n" not in str(refused.value)


def test_nothing_is_opened_where_nothing_is_measured(a_run, digits):
    assert (
        open_evaluation(a_run(evaluate_every=0, evaluation=replace(FEW, features="no")), digits, Accelerator()) is None
    )


def test_a_run_of_before_evaluations_is_the_same_run(a_run, tmp_path):
    """Its config does not have the keys."""
    config = a_run(evaluate_every=0, evaluation=EvaluationConfig())
    held = yaml.safe_load(dump(config))
    for key in ("evaluate_every", "evaluation"):
        del held[key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(held))
    claim_folder(tmp_path, config)
    with pytest.raises(UserError, match="holds a run with another config"):
        claim_folder(tmp_path, replace(config, evaluate_every=5))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == held


# ------------------------------------------------------------------------------------------------------------ processes


@pytest.mark.slow
def test_two_processes_measure_what_one_does(start_script, a_run, measured, tmp_path):
    """An odd number of stretches, so that the shares differ; the first one alone writes."""
    few = EvaluationConfig(num_images=150, reference_images=90)
    (tmp_path / "run.yaml").write_text(dump(a_run(evaluation=few)))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    said = [tmp_path / f"said-{rank}" for rank in range(2)]
    names = {"arguments": [str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")], "processes": 2, "port": port}
    started = [start_script(SCRIPT, rank=rank, said=str(said[rank]), **names) for rank in range(2)]
    for process in started:
        process.join(DEADLINE)
    assert [process.exitcode for process in started] == [0, 0], [file.read_text() for file in said]
    lines = evaluations(tmp_path / "run" / "student")
    assert [line["step"] for line in lines] == [1, 2, 3]
    best = min(lines, key=lambda line: line["KD-MNIST"])
    alone = measured(tmp_path / "run" / "student" / "best", few)
    assert (alone.value, *alone.interval) == tuple(best[f"KD-MNIST{end}"] for end in ("", "/low", "/high"))
    assert "KD-MNIST" in said[0].read_text() and "KD-MNIST" not in said[1].read_text()


def test_the_card_counts_the_evaluations_of_the_network(digits):
    evaluation = TrainingEvaluation(replace(FEW, steps=2), digits, MNIST(), Accelerator(cpu=True), Processes())
    info = load_model(Path(open_any(None).path), "meta").info
    line = evaluation.in_words(Best(5, 0.25, "0.25 ± 0.1"), info)
    assert "KD-MNIST 0.25 ± 0.1 (95% interval), of 40 images in 2 network evaluations each" in line
