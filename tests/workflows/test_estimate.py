"""What a run would take, against counts by hand and against the networks themselves."""

import math
from dataclasses import replace

import pytest
import torch

from unistep.cli.train import parse_run
from unistep.config import recipe_names
from unistep.errors import UserError
from unistep.workflows.estimate.design import designed, image_kind
from unistep.workflows.estimate.estimate import estimate
from unistep.workflows.estimate.measure import AVERAGES, OPTIMIZER, Measurement
from unistep.workflows.runs.design import ImageKind
from unistep.workflows.runs.network import build_network, shaped_network

TINY = ["--network.block_out_channels", "[8,8]", "--network.attention_head_dim", "8", "--precision", "fp32"]
TINY += ["--data.resolution", "8", "--teacher.batch_size", "4", "--student.batch_size", "4"]


def tiny(*flags):
    return parse_run(["mnist-quick", *TINY, *flags])[0]


def convolutions_by_hand(config, images):
    """2 x MACs of the convolutions and matrix products of one evaluation, by the shapes that go in and out."""
    network = build_network(shaped_network(config, images.channels, images.size, images.classes), 0).eval()
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, torch.nn.Conv2d):
            total += 2 * module.weight.numel() * output[0, 0].numel()
        elif isinstance(module, torch.nn.Linear):
            total += 2 * module.weight.numel() * (output.numel() // output.shape[-1])

    for module in network.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        x = torch.zeros(1, *images.shape)
        network(x, torch.zeros(1), torch.zeros(1, dtype=torch.int64) if images.classes else None)
    return total, sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def counted():
    return estimate(tiny("--network.add_attention", "false"), steps=0)


def test_flops_and_parameters_are_those_counted_by_hand(counted):
    flops, parameters = convolutions_by_hand(tiny("--network.add_attention", "false"), counted.images)
    for stage in counted.stages:
        assert stage.flops.evaluation == flops
        assert stage.parameters == parameters


def test_a_step_is_made_of_the_methods_evaluations(counted):
    """The backward pass takes twice the forward one, less the gradient of the image, which nobody needs."""
    teacher, student = counted.stages
    one = teacher.flops.evaluation
    assert teacher.flops.parts.keys() == {"student, forward", "backward"}
    assert student.flops.parts["target, forward"] == student.flops.parts["student, forward"] == one
    for stage in (teacher, student):
        assert 1.9 * one < stage.flops.parts["backward"] <= 2 * one
        assert stage.flops.total == sum(stage.flops.parts.values())


def test_attention_is_counted(counted):
    """Two products of tokens x tokens x channels, which the hooks do not see."""
    attending = estimate(tiny(), steps=0).stages[0].flops.evaluation
    projections = convolutions_by_hand(tiny(), counted.images)[0]
    tokens, channels = 2 * 2, 8  # 8 pixels, folded by 2, halved once
    assert attending - projections == 2 * 2 * tokens * tokens * channels


CD = ["--student.objective.pairs", "uniform", "--student.objective.target", "ema"]


@pytest.mark.parametrize(("step", "evaluations"), [("heun", 2), ("euler", 1)])
def test_the_teacher_of_distillation(step, evaluations):
    student = estimate(tiny(*CD, "--student.objective.step", step), steps=0).stages[1]
    assert student.flops.parts["teacher, forward"] == evaluations * student.flops.evaluation
    assert student.flops.parts["target, forward"] == student.flops.evaluation
    assert student.memory.parts["teacher"] == student.memory.parts["target"] == 4 * student.parameters


def test_guidance_doubles_the_teacher():
    flags = ["--student.objective.step", "euler", "--student.objective.guidance", "2"]
    student = estimate(tiny(*CD, *flags, "--teacher.objective.label_dropout", "0.1"), steps=0).stages[1]
    assert student.flops.parts["teacher, forward"] == 2 * student.flops.evaluation


def test_progressive_distillation_asks_its_teacher_twice():
    student = estimate(tiny("--student.method", "pd"), steps=0).stages[1]
    assert student.flops.parts["teacher, forward"] == 2 * student.flops.evaluation
    assert "target, forward" not in student.flops.parts
    assert student.memory.parts.keys() >= {"teacher", "target"}  # the target becomes the teacher later


def test_networks_that_are_trained_in_turn_count_by_their_share_of_the_steps():
    """DMD2, three steps of the critic before one of the student: teacher, critic and samples by the evaluations."""
    flags = ["--student.method", "dmd2", "--student.objective.critic_steps", "3", "--network.add_attention", "false"]
    one, two = (
        estimate(tiny(*flags, "--student.objective.student_steps", str(n)), steps=n - 1).stages[1] for n in (1, 2)
    )
    for student, samples in ((one, 0.75), (two, 1.75)):
        parts, evaluation = student.flops.parts, student.flops.evaluation
        assert evaluation == student.flops.parts["student, forward"] * 4
        assert parts["teacher, forward"] == pytest.approx(0.25 * evaluation, rel=1e-6)
        assert parts["critic, forward"] == pytest.approx(evaluation, rel=1e-6)
        assert parts["samples, forward"] == pytest.approx(samples * evaluation, rel=1e-6)
        memory = student.memory.parts
        assert memory["critic"] == memory["teacher"] == memory["gradients"] == memory["weights"]
        assert memory[OPTIMIZER] == 4 * memory["weights"]
    assert two.measured.what == "whole step" and two.measured.update > 0


@pytest.mark.parametrize(("velocity", "evaluations"), [("teacher", 1), ("data", 0)])
def test_continuous_methods_have_a_tangent(velocity, evaluations):
    """It is measured with the real one, which no tensors without content can take."""
    flags = ["--student.method", "scd", "--student.objective.velocity", velocity, "--network.add_attention", "false"]
    student = estimate(tiny(*flags), steps=1).stages[1]
    assert student.flops.parts["tangent, about"] == 2 * student.flops.evaluation
    assert student.flops.parts.get("teacher, forward", 0) == evaluations * student.flops.evaluation
    assert student.measured.what == "whole step"


def test_lpips_has_a_cost_of_its_own():
    flags = ["--student.objective.distance", "lpips"]
    student = estimate(tiny(*flags), steps=0).stages[1]
    # VGG16's convolutions at 224 x 224 are 15.3 G MACs, of two images.
    assert student.flops.parts["LPIPS, forward"] == pytest.approx(2 * 2 * 15.35e9, rel=0.01)
    assert student.memory.parts["LPIPS"] == pytest.approx(4 * 14.7e6, rel=0.01)


def test_memory_by_parts(counted):
    stage = replace(counted.stages[1], config=replace(counted.stages[1].config, ema_decays=(0.9, 0.99)))
    weights = 4 * stage.parameters
    memory = stage.memory
    assert memory.parts == {"weights": weights, "gradients": weights, OPTIMIZER: 2 * weights, AVERAGES: weights}
    assert memory.activations(7) - memory.activations(6) == memory.per_image > 0
    assert memory.total(4) == 5 * weights + memory.activations(4)
    assert memory.copy == 4 * weights
    two = estimate(tiny("--student.ema_decays", "[0.9,0.99]"), steps=0).stages[1].memory
    assert two.parts[AVERAGES] == 2 * two.parts["weights"]


def test_the_activations_are_what_the_backward_pass_keeps():
    """Counted without content, and with it."""
    config = tiny()
    counted = estimate(config, steps=0)
    images, network = counted.images, shaped_network(config, 1, 8, 10)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    student = build_network(network, 0).train()
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student(torch.zeros(3, *images.shape), torch.zeros(3), torch.zeros(3, dtype=torch.int64)).sum()
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    # The scalings and the loss keep some images more.
    assert real <= counted.stages[0].memory.activations(3) <= real + 3 * 10 * 4 * math.prod(images.shape)


def test_activation_checkpointing_is_counted(counted):
    """Blocks keep what they are given; the backward pass computes all but their last layers again."""
    less = estimate(tiny("--network.add_attention", "false", "--activation_checkpointing", "true"), steps=0)
    for before, after in zip(counted.stages, less.stages, strict=True):
        assert after.memory.parts == before.memory.parts
        assert after.memory.activations(4) < 0.6 * before.memory.activations(4)
        parts, own = before.flops.parts, after.flops.parts
        again = own["backward"] - parts["backward"]
        assert 0.3 * before.flops.evaluation < again < before.flops.evaluation
        assert {**own, "backward": 0} == {**parts, "backward": 0}


def test_evaluations_are_told_and_not_counted(counted):
    """Three of them: after 500 and 1,000 steps and at the end, after 1,200. Each image is one evaluation."""
    flags = ["--network.add_attention", "false", "--evaluate-every", "500", "--evaluation.num_images", "400"]
    found = estimate(tiny(*flags), steps=0)
    student = found.stages[1]
    part = 3 * 400 * student.flops.evaluation / (1200 * 4 * student.flops.total)
    (note,) = found.notes
    assert note.startswith(f"the 3 evaluations are not counted: of 400 images each, whose making takes {part:.1%} of")
    assert replace(found, notes=()) == replace(counted, notes=(), free_memory=found.free_memory)
    (note,) = estimate(tiny(*flags, "--student", "null", "--evaluation.steps", "3"), steps=0).notes
    teacher = counted.stages[0].flops
    assert f" {2 * 400 * 5 * teacher.evaluation / (1000 * 4 * teacher.total):.1%} of" in note  # Heun's steps, 5 each


def test_accumulation_that_fits(counted):
    stage = counted.stages[0]
    everything, least = stage.memory.total(4), stage.memory.total(1)
    assert [stage.accumulation_within(m) for m in (everything, everything - 1, least, least - 1)] == [1, 2, 4, None]


def test_images_and_hours_follow_from_the_rate(counted):
    """Two micro-batches and one update are a step."""
    measured = Measurement("whole step", 10, 2, seconds=0.5, update=1.0)
    stage = replace(counted.stages[0], measured=measured)
    assert stage.config.batch_size == 4
    assert stage.images == 4 * 1000
    assert stage.images_per_second == 4 / 2.0
    assert stage.hours == pytest.approx(4000 / 2 / 3600)


def test_a_measurement(tmp_path, monkeypatch):
    """The whole step of both stages; nothing is written."""
    monkeypatch.chdir(tmp_path)
    found = estimate(tiny(), steps=2, seconds=60)
    for stage in found.stages:
        assert (stage.measured.what, stage.measured.steps) == ("whole step", 2)
        assert 1 <= stage.measured.micro_batch <= 4
        assert stage.measured.seconds > 0 < stage.measured.update
        assert 0 < stage.hours == pytest.approx(stage.images / stage.images_per_second / 3600)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "what"), [("memory", "forward and backward"), ("time", "one evaluation")])
def test_what_is_left_out_where_there_is_too_little(limit, what, counted, monkeypatch):
    if limit == "memory":
        student = counted.stages[1].memory
        passes = student.total(1) - student.parts[OPTIMIZER] - student.parts[AVERAGES] + student.activations(1)
        monkeypatch.setattr("unistep.workflows.estimate.measure._CPU_MEMORY", passes)
    config = tiny("--network.add_attention", "false", "--teacher", "null")
    (stage,) = estimate(config, steps=2, seconds=60 if limit == "memory" else 0).stages
    assert stage.measured.what == what
    assert stage.measured.update == 0
    assert stage.images_per_second > 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (28, 1, 10)),
        (["--data.resolution", "32", "--data.channels", "3"], (32, 3, 10)),
        (["--use_labels", "false"], (28, 1, 0)),
        (["--data.use_labels", "false"], (28, 1, 0)),
        (["--data.source", "fashion-mnist"], (28, 1, 10)),
        (["--data.source", "cifar10-test"], (32, 3, 10)),
        (["--data.source", "photos"], (64, 3, 0)),
        (["--data.source", "photos", "--network.sample_size", "16", "--network.num_class_embeds", "7"], (16, 3, 7)),
    ],
)
def test_the_images(flags, expected):
    images = image_kind(parse_run(["mnist-quick", *flags])[0])
    assert (images.size, images.channels, images.classes) == expected
    assert images == ImageKind(*expected, origin=images.origin)


@pytest.mark.parametrize(
    ("flags", "classes", "note"),
    [
        ([], 0, "none are counted"),
        (["--teacher.objective.label_dropout", "0.1"], 10, "10 are counted"),
        (
            ["--teacher.objective.label_dropout", "0.1", *CD, "--student.objective.guidance", "1.5"],
            10,
            "10 are counted",
        ),
        (["--teacher.objective.label_dropout", "0.1", "--network.num_class_embeds", "7"], 7, ""),
    ],
)
def test_classes_of_data_that_are_not_read(flags, classes, note):
    """Where a stage needs some, some are counted: a network has a null class beside them."""
    data = ["--data.source", "images.npz", "--data.resolution", "28", "--data.channels", "1"]
    _, designs, notes = designed(parse_run(["mnist-quick", *TINY, *data, *flags])[0])
    assert [d.network.num_class_embeds or 0 for d in designs] == [classes + (len(flags) > 0), classes]
    assert (note in notes[-1]) if note else not notes


def test_a_network_that_is_not_here_is_refused():
    flags = ["--teacher", "absent.pkl", "--network", "null"]
    with pytest.raises(UserError, match=r"that of absent\.pkl, which is not here; fetch it, or give a `network`"):
        estimate(parse_run(["mnist-quick", *flags])[0], steps=0)


def test_a_network_that_is_given_stands_for_its_teachers(counted):
    flags = ["--teacher", "absent.pkl", *CD, "--student.objective.step", "euler"]
    found = estimate(tiny(*flags, "--network.add_attention", "false"), steps=0)
    assert "absent.pkl is not here" in found.notes[0]
    (stage,) = found.stages
    assert stage.flops.parts["teacher, forward"] == counted.stages[0].flops.evaluation


def test_the_network_of_a_teacher_that_is_here(model_folder):
    folder = model_folder("diffusion", num_class_embeds=3)
    flags = ["--teacher", str(folder), "--network", "null", "--data.source", "photos"]
    found = estimate(parse_run(["mnist-quick", *flags])[0], steps=0)
    assert (found.images.size, found.images.channels, found.images.classes) == (16, 1, 3)
    (stage,) = found.stages
    assert (stage.name, stage.network) == ("student", "PatchedUNet")
    with pytest.raises(UserError, match=r"makes images of .* \(1, 16, 16\), the data \(1, 32, 32\)"):
        estimate(parse_run(["mnist-quick", *flags, "--data.resolution", "32"])[0], steps=0)


LARGE = ("imagenet64-", "lsun256-", "cifar10-")  # the recipes of MNIST have every method
RECIPES = [pytest.param(n, marks=pytest.mark.slow if n.startswith(LARGE) else ()) for n in recipe_names()]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_counted(name):
    config = parse_run([name])[0]
    for stage in estimate(config, steps=0).stages:
        assert stage.measured is None is stage.hours
        assert stage.flops.total > 2.9 * stage.flops.evaluation > 0
        assert stage.memory.total(stage.micro_batch) > 5 * 4 * stage.parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_measured(name):
    assert all(stage.hours > 0 for stage in estimate(parse_run([name])[0]).stages)
