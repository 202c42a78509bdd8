"""Architecture, teacher, student and objective of a config."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unistep.config import RunConfig, StudentConfig, TeacherConfig
from unistep.core.parameterization import ConsistencyScaling, EDMScaling
from unistep.data import ImageDataset
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model
from unistep.formats.published.lpips import LPIPSConfig
from unistep.networks.adm import UNet
from unistep.networks.patched import PatchedUNet
from unistep.networks.song import SongUNet
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective
from unistep.objectives.continuous import ContinuousConfig, ContinuousObjective
from unistep.objectives.denoising import DenoisingConfig
from unistep.objectives.methods import METHODS
from unistep.objectives.progressive import ProgressiveConfig, ProgressiveObjective
from unistep.samplers.guidance import Guided
from unistep.workflows import parts
from unistep.workflows.parts import (
    build_network,
    build_student,
    build_teacher,
    network_config,
    open_teacher,
    student_objective,
    teacher_parts,
)

CPU = torch.device("cpu")


@pytest.fixture
def config(network):
    """config(**fields): a run that trains a teacher of `network`."""
    return lambda **fields: RunConfig(**({"network": network, "teacher": TeacherConfig()} | fields))


def by_teacher(path: Path | str, run=None, **fields) -> RunConfig:
    """A run that distills the model at `path`."""
    return RunConfig(teacher_model=str(path), student=StudentConfig(**fields), **(run or {}))


def dataset(*shape: int, classes: int = 3) -> ImageDataset:
    labels = torch.tensor([0, classes - 1]) if classes else None
    return ImageDataset(torch.zeros(2, *shape, dtype=torch.uint8), labels)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state(model) -> dict[str, torch.Tensor]:
    return {name: v.clone() for name, v in model.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("kind", ["network", "song"])
def test_a_networks_weights_are_those_of_its_seed(kind, request, monkeypatch):
    """Whatever was drawn before; and what is drawn afterwards is what it would have been, on GPUs too."""
    architecture = request.getfixturevalue(kind)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' random state is changed"))
    first = build_network(architecture, seed=3).state_dict()
    torch.rand(5)
    before = torch.get_rng_state()
    again = build_network(architecture, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, build_network(architecture, seed=4).state_dict())


def test_a_network_without_patches_is_what_diffusers_opens(saved):
    assert '"UNet2DModel"' in (saved(patch_size=1) / "model_index.json").read_text()
    assert '"UNet2DModel"' not in (saved(patch_size=2) / "model_index.json").read_text()


@pytest.mark.parametrize(
    ("use_labels", "labelled", "classes"), [(True, True, 5), (False, True, None), (True, False, None)]
)
@pytest.mark.parametrize("kind", ["network", "song"])
def test_the_data_decides_size_channels_and_classes(kind, use_labels, labelled, classes, request):
    architecture = request.getfixturevalue(kind)
    run = RunConfig(use_labels=use_labels, teacher=TeacherConfig(), **{kind: architecture})
    found = network_config(run, dataset(3, 12, 12, classes=5 if labelled else 0))
    assert found == replace(architecture, sample_size=12, in_channels=3, out_channels=3, num_class_embeds=classes)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("network", (1, 8, 12), "images are 12x8; set data.res"),
        ("network", (1, 10, 10), "^network: .*a multiple of 4 .*; set data.res"),
        ("song", (1, 8, 12), "images are 12x8; set data.res"),
        ("song", (1, 9, 9), "^song: sample_size: 9 cannot be halved 1 times; set data.res"),
    ],
)
def test_images_that_do_not_fit_the_network(kind, shape, message, request):
    run = RunConfig(teacher=TeacherConfig(), **{kind: request.getfixturevalue(kind)})
    with pytest.raises(UserError, match=message) as refused:
        network_config(run, dataset(*shape))
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------------------------- a teacher trained here


@pytest.mark.parametrize("kind", ["network", "song"])
@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_a_teacher_has_a_null_class_where_labels_are_dropped(kind, dropped, request):
    architecture = request.getfixturevalue(kind)
    objective = DenoisingConfig(label_dropout=dropped)
    run = RunConfig(teacher=TeacherConfig(objective=objective), sigma_data=0.6, **{kind: architecture})
    wider, info = teacher_parts(run, architecture)
    assert wider == replace(architecture, num_class_embeds=4 if dropped else 3)
    embedding = "adm" if kind == "network" else "edm"
    null = 3 if dropped else None
    method = "EDM denoising"
    assert info == ModelInfo("diffusion", sigma_data=0.6, null_label=null, noise_embedding=embedding, method=method)
    _, info = teacher_parts(replace(run, noise_embedding="adm"), architecture)
    assert info.noise_embedding == "adm"


def test_augmentation_needs_a_network_that_is_told_of_it(network, song):
    stage = TeacherConfig(objective=DenoisingConfig(augment=0.12))
    for fields in ({"network": network}, {"song": song}, {"song": replace(song, augment_dim=8)}):
        run = RunConfig(teacher=stage, **fields)
        with pytest.raises(UserError, match=r"augment 0.12 needs .*; set song.augment_dim to 9, or") as refused:
            teacher_parts(run, next(iter(fields.values())))
        assert "\n" not in str(refused.value)
    told = replace(song, augment_dim=9)
    assert teacher_parts(RunConfig(teacher=stage, song=told), told)[0] == told


def test_labels_cannot_be_dropped_where_there_are_none(config, network):
    run = config(teacher=TeacherConfig(objective=DenoisingConfig(label_dropout=0.1)))
    with pytest.raises(UserError, match="label_dropout needs class labels, and there are none; set it to 0"):
        teacher_parts(run, replace(network, num_class_embeds=None))


# ------------------------------------------------------------------------------------------------- teacher and student


def test_a_student_starts_from_the_teachers_weights_without_the_null_class(config, network, saved):
    teacher = load_model(saved(null_label=3, num_class_embeds=4, info={"sigma_data": 0.6}))
    before = state(teacher.denoiser.network)
    stage = StudentConfig(timesteps=(0, 5), num_train_timesteps=20, objective=ConsistencyConfig(sigma_min=0.01, rho=5))
    student, info = build_student(config(sigma_data=0.6), stage, network, teacher)
    found = student.network.state_dict()
    (name,) = [name for name in found if found[name].shape != before[name].shape]
    assert name.endswith("class_embedding.weight")
    assert same(found, before | {name: before[name][:3]})
    assert all(p.requires_grad for p in student.parameters())
    method = "consistency objective: uniform, same-noise, stop-gradient, l2, uniform, fixed"
    assert info == ModelInfo("consistency", 0.01, 80.0, 5, 0.6, 20, (0, 5), method=method)
    assert student.scaling == ConsistencyScaling(0.01, 0.6, "adm")
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
    assert same(before, teacher.denoiser.network.state_dict())


@pytest.mark.parametrize("method", ["objective", "continuous", "progressive"])
@pytest.mark.parametrize("kind", ["network", "song"])
def test_the_student_says_first_what_the_teacher_says_of_every_class(kind, method, request, saved, generator):
    """With a null class beside them, of which it knows nothing; at sigma_min 0 a student's scalings are the teacher's.

    A SongUNet scales its one-hot vectors by the root of their length, which is one less.
    """
    architecture = request.getfixturevalue(kind)
    teacher = load_model(saved(null_label=3, base=replace(architecture, num_class_embeds=4)))
    chosen = {
        "objective": ConsistencyConfig(sigma_min=0.0),
        "continuous": ContinuousConfig(),
        "progressive": ProgressiveConfig(2),
    }[method]
    stage = StudentConfig(**{method: chosen})
    run = RunConfig(teacher_model="teacher", student=stage)
    student, _ = build_student(run, stage, architecture if method == "objective" else None, teacher)
    student.eval()
    x, sigma, labels = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 20.0]), torch.arange(3)
    with torch.no_grad():
        for classes in (labels, labels.flip(0), labels.roll(1)):
            expected = teacher.denoiser(x, sigma, classes)
            torch.testing.assert_close(student(x, sigma, classes), expected, rtol=1e-5, atol=1e-5)
        other = teacher.denoiser(x, sigma, labels.roll(1))
    assert (other - teacher.denoiser(x, sigma, labels)).abs().amax((1, 2, 3)).min() > 1e-3
    assert student.network.config.num_class_embeds == 3


def test_a_student_of_its_own_starts_from_the_seed(config, network, teacher):
    student, _ = build_student(config(seed=9), StudentConfig(from_teacher=False), network, teacher)
    assert same(student.network.state_dict(), build_network(network, 9).state_dict())


@pytest.mark.parametrize("kind", ["network", "song"])
def test_dropout_of_the_student_is_its_own(kind, request, saved):
    base = replace(request.getfixturevalue(kind), dropout=0.25)
    teacher = load_model(saved(base=base))
    for given, found in ((None, 0.25), (0.0, 0.0), (0.5, 0.5)):
        for architecture in (None, base):
            stage = StudentConfig(dropout=given)
            student, _ = build_student(by_teacher("teacher"), stage, architecture, teacher)
            assert student.network.config.dropout == found
            assert same(student.network.state_dict(), teacher.denoiser.network.state_dict())


def test_a_student_hears_of_no_augmentation_and_hides_no_label(song, saved):
    """What a teacher has for it is left out: a weight that no loss moves would stop several processes."""
    base = replace(song, augment_dim=9, label_dropout=0.2)
    teacher = load_model(saved(base=base))
    for architecture in (None, base):
        student, _ = build_student(by_teacher("teacher"), StudentConfig(), architecture, teacher)
        assert student.network.config == song
        weights = state(teacher.denoiser.network)
        del weights["map_augment.weight"]
        assert same(student.network.state_dict(), weights)


def test_guidance_wraps_the_teacher_with_its_null_class(teacher):
    assert build_teacher(teacher, ConsistencyConfig(), CPU) is teacher.denoiser
    for method in (ConsistencyConfig(guidance=1.5), ContinuousConfig(guidance=1.5), ProgressiveConfig(guidance=1.5)):
        guided = build_teacher(teacher, method, CPU)
        x, sigma, labels = torch.ones(2, 1, 8, 8), torch.full((2,), 3.0), torch.tensor([0, 2])
        own, null = teacher.denoiser(x, sigma, labels), teacher.denoiser(x, sigma, torch.tensor([3, 3]))
        assert isinstance(guided, Guided)
        assert (own - null).abs().max() > 1e-3
        torch.testing.assert_close(guided(x, sigma, labels), null + 1.5 * (own - null))


def test_guidance_by_a_teacher_without_a_null_class(saved):
    plain = load_model(saved())
    with pytest.raises(
        UserError, match="guidance 2 of the student needs a teacher with a null class; train"
    ) as refused:
        build_teacher(plain, ConsistencyConfig(guidance=2), CPU)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------- a teacher of others


def test_no_teacher_is_opened_where_none_is_named(config):
    assert open_teacher(config(), dataset(1, 8, 8)) is None


def test_a_teacher_that_fits_is_opened(saved):
    path = saved()
    assert open_teacher(by_teacher(path), dataset(1, 8, 8)).path == path  # pyright: ignore
    assert open_teacher(by_teacher(saved(num_class_embeds=None), {"use_labels": False}), dataset(1, 8, 8)) is not None


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("consistency", {}, "is a consistency model; give a diffusion model"),
        ("diffusion", {"in_channels": 3, "out_channels": 3}, r"\(3, 8, 8\), the data \(1, 8, 8\); .* data.resolution"),
        ("diffusion", {"sample_size": 16}, r"\(1, 16, 16\), the data \(1, 8, 8\)"),
        ("diffusion", {"num_class_embeds": 4}, "number of classes of 4, the data 3; give one that fits"),
        ("diffusion", {"num_class_embeds": None}, "number of classes of 0, the data 3; set use_labels to false"),
    ],
)
def test_a_teacher_that_does_not_fit_the_data_is_refused(saved, kind, fields, message):
    with pytest.raises(UserError, match=message) as refused:
        open_teacher(by_teacher(saved(kind, **fields)), dataset(1, 8, 8))
    assert "\n" not in str(refused.value)


def test_the_null_class_is_not_one_of_the_datas_classes(saved):
    data = dataset(1, 8, 8)
    assert open_teacher(by_teacher(saved(null_label=3, num_class_embeds=4)), data) is not None
    with pytest.raises(UserError, match="number of classes of 2, the data 3"):
        open_teacher(by_teacher(saved(null_label=2)), data)


@pytest.mark.parametrize("fields", [{"layers_per_block": 2}, {"patch_size": 1}])
def test_a_student_of_another_network_cannot_begin_as_the_teacher(saved, network, fields):
    teacher, stage = load_model(saved(**fields)), StudentConfig()
    run = by_teacher("teacher")
    with pytest.raises(UserError, match="differs from the teacher's .*leave out `network` and `song`") as refused:
        build_student(run, stage, network, teacher)
    assert "\n" not in str(refused.value)
    build_student(run, replace(stage, from_teacher=False), network, teacher)
    student, _ = build_student(run, stage, None, teacher)
    assert same(student.network.state_dict(), teacher.denoiser.network.state_dict())


def test_a_student_begins_as_a_teacher_of_the_same_scale(saved, network):
    teacher = load_model(saved(info={"sigma_data": 0.25}))
    with pytest.raises(UserError, match="sigma_data 0.25, the run 0.5; set sigma_data to 0.25") as refused:
        build_student(by_teacher("teacher"), StudentConfig(), None, teacher)
    assert "\n" not in str(refused.value)
    student, info = build_student(by_teacher("teacher", {"sigma_data": 0.25}), StudentConfig(), None, teacher)
    assert info.sigma_data == 0.25 and student.scaling.sigma_data == 0.25  # pyright: ignore
    # One that begins anew may have a scale of its own.
    build_student(by_teacher("teacher"), StudentConfig(from_teacher=False), None, teacher)


def test_a_student_without_a_network_needs_a_teacher():
    stage = StudentConfig(from_teacher=False)
    with pytest.raises(UserError, match="neither given nor a teacher's; set `network` or `song`"):
        build_student(by_teacher("teacher"), stage, None, None)


@pytest.mark.parametrize("name", ["edm_cat256_tiny.pt", "ema_0.9999_600000.pt"])
def test_a_teacher_of_openais(openai_pt, name):
    """A name that says nothing of the kind is no obstacle: the run says that it is a teacher."""
    data = dataset(3, 32, 32, classes=0)
    teacher = open_teacher(by_teacher(openai_pt(name)), data)
    assert teacher is not None and teacher.info.kind == "diffusion" and teacher.info.noise_embedding == "adm"
    student, info = build_student(by_teacher("teacher"), StudentConfig(objective=METHODS["cd"]), None, teacher)
    assert isinstance(student.network, UNet) and student.network.config == teacher.config
    assert same(student.network.state_dict(), teacher.denoiser.network.state_dict())
    assert info.noise_embedding == "adm" and student.scaling == ConsistencyScaling(0.002, 0.5, "adm")


def test_a_consistency_model_of_openais_is_no_teacher(openai_pt):
    with pytest.raises(UserError, match="is a consistency model; give a diffusion model"):
        open_teacher(by_teacher(openai_pt("cd_cat256_l2.pt")), dataset(3, 32, 32, classes=0))


@pytest.mark.parametrize(
    ("method", "kind", "scaling"),
    [
        ("cd", "consistency", ConsistencyScaling(0.002, 0.5, "edm")),
        ("pd", "diffusion", EDMScaling(0.5, "edm")),
        ("scd", "consistency", ConsistencyScaling(0.0, 0.5, "edm")),
    ],
)
def test_a_teacher_of_edms(edm_pkl, method, kind, scaling, generator):
    """Its network is told ln(sigma)/4, and so is the student's, whatever the run says of networks that begin there."""
    data = dataset(3, 16, 16, classes=5)
    run = by_teacher(edm_pkl(), {"noise_embedding": "adm"}, **{key_of(method): small(method)})
    teacher = open_teacher(run, data)
    assert teacher is not None and network_config(run, data) is None
    student, info = build_student(run, run.student, None, teacher)
    assert isinstance(student.network, SongUNet)
    assert student.network.config == replace(teacher.config, augment_dim=0)
    assert teacher.config.augment_dim == 9
    weights = state(teacher.denoiser.network)
    del weights["map_augment.weight"]
    assert same(student.network.state_dict(), weights)
    assert (info.kind, info.noise_embedding) == (kind, "edm")
    found = student.scaling
    assert [found.c_skip(torch.tensor([3.0])), found.c_noise(torch.tensor([3.0]))] == [
        scaling.c_skip(torch.tensor([3.0])),
        scaling.c_noise(torch.tensor([3.0])),
    ]
    objective = student_objective(run, run.student, student, teacher, CPU)
    assert getattr(objective, "teacher", getattr(objective, "first_teacher", None)) is teacher.denoiser


def test_a_student_with_the_teachers_network_is_told_as_the_teacher_even_if_it_begins_anew(edm_pkl):
    run = by_teacher(edm_pkl(), from_teacher=False)
    teacher = open_teacher(run, dataset(3, 16, 16, classes=5))
    _, info = build_student(run, run.student, None, teacher)
    assert info.noise_embedding == "edm"
    _, info = build_student(replace(run, noise_embedding="adm"), run.student, None, teacher)
    assert info.noise_embedding == "adm"


def test_a_teacher_with_other_scalings_can_teach_but_not_be_begun_from(edm_pkl, network):
    data = dataset(3, 16, 16, classes=5)
    run = by_teacher(edm_pkl("VPPrecond"), objective=METHODS["cd"])
    teacher = open_teacher(run, data)
    assert teacher is not None and teacher.info.preconditioning == "vp"
    with pytest.raises(
        UserError, match="cannot begin as .*, whose scalings are those of vp; set student.from_teach"
    ) as e:
        build_student(run, run.student, None, teacher)
    assert "\n" not in str(e.value)
    own = replace(network, sample_size=16, in_channels=3, out_channels=3, num_class_embeds=5)
    stage = replace(run.student, from_teacher=False)
    student, info = build_student(replace(run, network=own, student=stage), stage, own, teacher)
    assert isinstance(student.network, PatchedUNet) and info.noise_embedding == "adm"
    assert isinstance(student_objective(run, stage, student, teacher, CPU), ConsistencyObjective)


# ---------------------------------------------------------------------------------------------------------- objectives


def key_of(name: str) -> str:
    kinds = {ConsistencyConfig: "objective", ContinuousConfig: "continuous", ProgressiveConfig: "progressive"}
    return kinds[type(METHODS[name])]


def small(name: str):
    return dataclasses.replace(METHODS[name], start_scales=4) if name == "pd" else METHODS[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_objective_of_every_method(name, network, teacher):
    stage = StudentConfig(steps=40, **{key_of(name): small(name)})
    run = RunConfig(network=network, teacher_model="teacher", sigma_data=0.5, student=stage)
    student, info = build_student(run, stage, network, teacher)
    objective = student_objective(run, stage, student, teacher, CPU)
    kinds = (ConsistencyObjective, ContinuousObjective, ProgressiveObjective)
    assert isinstance(objective, kinds)
    assert objective.config == small(name) and objective.total_steps == 40 and objective.sigma_data == 0.5
    assert (info.sigma_min, info.sigma_max, info.rho) == (small(name).sigma_min, small(name).sigma_max, small(name).rho)
    if name == "pd":
        assert (info.kind, info.solver, info.steps) == ("diffusion", "progressive", 1)
    else:
        assert (info.kind, info.num_train_timesteps) == ("consistency", 40)


def test_guidance_reaches_the_objective(network, teacher):
    stage = StudentConfig(objective=replace(METHODS["cd"], guidance=2.0))
    run = RunConfig(network=network, teacher_model="teacher", student=stage)
    student, _ = build_student(run, stage, network, teacher)
    objective = student_objective(run, stage, student, teacher, CPU)
    assert isinstance(objective, ConsistencyObjective) and isinstance(objective.teacher, Guided)
    assert (objective.teacher.scale, objective.teacher.null_label) == (2.0, 3)


def test_lpips_is_read_from_the_files_that_the_config_names(network, teacher, monkeypatch):
    asked = []

    class Perceptual(torch.nn.Module):
        def forward(self, a, b):
            return (a - b).abs().mean((1, 2, 3))

    def load(vgg, heads):
        asked.append((vgg, heads))
        return Perceptual()

    monkeypatch.setattr(parts, "load_lpips", load)
    for distance in ("l2", "lpips"):
        stage = StudentConfig(objective=replace(METHODS["cd"], distance=distance))
        run = RunConfig(network=network, teacher_model="t", lpips=LPIPSConfig("a.pth", "b.pth"), student=stage)
        student, _ = build_student(run, stage, network, teacher)
        objective = student_objective(run, stage, student, teacher, CPU)
    assert asked == [("a.pth", "b.pth")]
    assert isinstance(objective.perceptual, Perceptual)  # pyright: ignore


def test_what_a_method_refuses_is_one_line_for_the_user(network, teacher):
    stage = StudentConfig(objective=METHODS["cd"], from_teacher=False)
    run = RunConfig(network=network, teacher_model="teacher", student=stage)
    student, _ = build_student(run, stage, network, None)
    with pytest.raises(UserError, match="^student: step 'heun' needs a teacher$"):
        student_objective(run, stage, student, None, CPU)
    with pytest.raises(ValueError, match="steps 4 are too few for 3 phases; give at least 5"):
        StudentConfig(steps=4, progressive=ProgressiveConfig(4))
