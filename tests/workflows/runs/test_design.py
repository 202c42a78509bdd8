"""What the stages of a run are made of, and the models and objectives that are built of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unistep.config import LPIPSConfig, RunConfig, StageConfig
from unistep.core.parameterization import ConsistencyScaling, EDMScaling
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.formats.model_folder.folder import load_model
from unistep.networks.adm import UNet
from unistep.networks.patched import PatchedUNet
from unistep.networks.song import SongUNet
from unistep.objectives.consistency import ConsistencyObjective
from unistep.objectives.denoising import DenoisingConfig
from unistep.objectives.methods import METHODS
from unistep.samplers.guidance import Guided
from unistep.workflows.runs import build
from unistep.workflows.runs.build import build_model, build_objective, build_teacher
from unistep.workflows.runs.design import ImageKind, ModelDesign, StageDesign, design_stages
from unistep.workflows.runs.models import open_models
from unistep.workflows.runs.network import build_network, shaped_network

SMALL = ImageKind(8, 1, 3)


def stage(method: str = "ect", name: str = "student", **fields) -> StageConfig:
    """stage("cd", init="model", step="euler"): what is no key of a stage is a number of its method."""
    own = {key: fields.pop(key) for key in list(fields) if key in StageConfig.__dataclass_fields__}
    return StageConfig(name=name, method=method, objective=METHODS[method].config(**fields), **own)


def student_of(method: str = "ect", **fields) -> StageConfig:
    """A stage that begins from the model called "teacher"."""
    return stage(method, **({"init": "teacher"} | fields))


def a_run(*stages: StageConfig, **fields) -> RunConfig:
    return RunConfig(stages=stages, **fields)


def designed(run: RunConfig, teacher: LoadedModel | None = None, images: ImageKind = SMALL) -> StageDesign:
    """The last stage, where the model called "teacher" is this one."""
    models = {} if teacher is None else {"teacher": ModelDesign.of(teacher)}
    return design_stages(run, images, models)[-1]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state(model) -> dict[str, torch.Tensor]:
    return {name: v.clone() for name, v in model.state_dict().items()}


def begun(run: RunConfig, teacher: LoadedModel, images: ImageKind = SMALL):
    """The student of the last stage, with the teacher's weights."""
    return build_model(run, designed(run, teacher, images), teacher)


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


@pytest.mark.parametrize("classes", [5, 0])
@pytest.mark.parametrize("kind", ["network", "song"])
def test_the_data_decides_size_channels_and_classes(kind, classes, request):
    architecture = request.getfixturevalue(kind)
    found = designed(a_run(stage("edm"), network=architecture), images=ImageKind(12, 3, classes)).network
    assert found == replace(
        architecture, sample_size=12, in_channels=3, out_channels=3, num_class_embeds=classes or None
    )


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("network", 10, "^`network`: .*a multiple of 4 .*; set `data.resolution`"),
        ("song", 9, "^`network`: sample_size: 9 cannot be halved 1 times; set `data.resolution`"),
    ],
)
def test_images_that_do_not_fit_the_network(kind, size, message, request):
    with pytest.raises(UserError, match=message) as refused:
        shaped_network(a_run(stage("edm"), network=request.getfixturevalue(kind)), 1, size, 0)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------------------------- a teacher trained here


@pytest.mark.parametrize("kind", ["network", "song"])
@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_a_teacher_has_a_null_class_where_labels_are_dropped(kind, dropped, request):
    architecture = request.getfixturevalue(kind)
    run = a_run(stage("edm", label_dropout=dropped), sigma_data=0.6, network=architecture)
    found = designed(run)
    assert found.network == replace(architecture, num_class_embeds=4 if dropped else 3)
    embedding, null = "adm" if kind == "network" else "edm", 3 if dropped else None
    method = "EDM denoising"
    assert found.info == ModelInfo(
        "diffusion", sigma_data=0.6, null_label=null, noise_embedding=embedding, method=method
    )
    assert designed(replace(run, noise_embedding="adm")).info.noise_embedding == "adm"


def test_augmentation_needs_a_network_with_inputs_for_it(network, song):
    augmenting = stage("edm", augment=0.12)
    for architecture in (network, song, replace(song, augment_dim=8)):
        with pytest.raises(UserError, match=r"augment` 0.12 needs .*; set `network.name` to song and .* to 9,") as e:
            designed(a_run(augmenting, network=architecture))
        assert "\n" not in str(e.value)
    fitting = replace(song, augment_dim=9)
    assert designed(a_run(augmenting, network=fitting)).network == fitting
    assert designed(a_run(stage("edm"), network=fitting)).network == song  # never used, they would never be trained


def test_labels_cannot_be_dropped_where_there_are_none(network):
    run = a_run(stage("edm", name="teacher", label_dropout=0.1), network=network)
    message = "`teacher.objective.label_dropout` needs class labels, and there are none; set it to 0"
    with pytest.raises(UserError, match=message):
        designed(run, images=ImageKind(8, 1, 0))


# ------------------------------------------------------------------------------------------------- teacher and student


def test_a_student_starts_from_the_teachers_weights_without_the_null_class(network, saved):
    teacher = load_model(saved(null_label=3, num_class_embeds=4, info={"sigma_data": 0.6}))
    before = state(teacher.denoiser.network)
    levels = {"timesteps": (0, 5), "schedules": ((0, 3, 5, 9),), "num_train_timesteps": 20}
    own = student_of("ct", **levels, distance="l1", sigma_min=0.01, rho=5)
    run = a_run(own, sigma_data=0.6, network=network)
    student = begun(run, teacher)
    found = student.network.state_dict()
    (name,) = [name for name in found if found[name].shape != before[name].shape]
    assert name.endswith("class_embedding.weight")
    assert same(found, before | {name: before[name][:3]})
    assert all(p.requires_grad for p in student.parameters())
    method = "consistency objective: uniform, same-noise, ema, l1, uniform, progressive"
    info = ModelInfo("consistency", 0.01, 80.0, 5, 0.6, method=method, **levels)
    assert designed(run, teacher).info == info
    assert student.scaling == ConsistencyScaling(0.01, 0.6, "adm")
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
    assert same(before, teacher.denoiser.network.state_dict())


@pytest.mark.parametrize("method", ["ect", "sct", "pd"])
@pytest.mark.parametrize("kind", ["network", "song"])
def test_the_student_says_first_what_the_teacher_says_of_every_class(kind, method, request, saved, generator):
    """With a null class beside them, of which it knows nothing; at sigma_min 0 a student's scalings are the teacher's.

    A SongUNet scales its one-hot vectors by the root of their length, which is one less.
    """
    architecture = request.getfixturevalue(kind)
    teacher = load_model(saved(null_label=3, base=replace(architecture, num_class_embeds=4)))
    run = a_run(student_of(method), network=architecture if method == "ect" else None)
    student = begun(run, teacher).eval()
    x, sigma, labels = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 20.0]), torch.arange(3)
    with torch.no_grad():
        for classes in (labels, labels.flip(0), labels.roll(1)):
            expected = teacher.denoiser(x, sigma, classes)
            torch.testing.assert_close(student(x, sigma, classes), expected, rtol=1e-5, atol=1e-5)
        other = teacher.denoiser(x, sigma, labels.roll(1))
    assert (other - teacher.denoiser(x, sigma, labels)).abs().amax((1, 2, 3)).min() > 1e-3
    assert student.network.config.num_class_embeds == 3  # pyright: ignore


def test_a_diffusion_model_keeps_the_null_class_of_the_one_it_begins_from(network, saved):
    """And has none where it drops no label."""
    teacher = load_model(saved(null_label=3, num_class_embeds=4))
    dropping, plain = (a_run(student_of("edm", label_dropout=p), network=network) for p in (0.1, 0.0))
    assert same(begun(dropping, teacher).network.state_dict(), teacher.denoiser.network.state_dict())
    assert designed(dropping, teacher).info.null_label == 3
    assert designed(plain, teacher).network.num_class_embeds == 3
    with pytest.raises(UserError, match="has no null class; set `student.objective.label_dropout` to 0"):
        designed(dropping, load_model(saved()))


def test_a_student_of_its_own_starts_from_the_seed(network):
    run = a_run(stage("ect"), network=network, seed=9)
    assert same(build_model(run, designed(run)).network.state_dict(), build_network(network, 9).state_dict())


@pytest.mark.parametrize("kind", ["network", "song"])
def test_dropout_of_the_student_is_its_own(kind, request, saved):
    base = replace(request.getfixturevalue(kind), dropout=0.25)
    teacher = load_model(saved(base=base))
    for given, found in ((None, 0.25), (0.0, 0.0), (0.5, 0.5)):
        for architecture in (None, base):
            student = begun(a_run(student_of(dropout=given), network=architecture), teacher)
            assert student.network.config.dropout == found  # pyright: ignore
            assert same(student.network.state_dict(), teacher.denoiser.network.state_dict())


def test_a_student_has_no_inputs_for_augmentation_and_hides_no_label(song, saved):
    """What a teacher has for it is left out: a weight that no loss moves would stop several processes."""
    base = replace(song, augment_dim=9, label_dropout=0.2)
    teacher = load_model(saved(base=base))
    for architecture in (None, base):
        student = begun(a_run(student_of(), network=architecture), teacher)
        assert student.network.config == song
        weights = state(teacher.denoiser.network)
        del weights["map_augment.weight"]
        assert same(student.network.state_dict(), weights)


@pytest.mark.parametrize("method", ["cd", "sct", "pd"])
def test_guidance_wraps_the_teacher_with_its_null_class(method, teacher):
    plain, guiding = (designed(a_run(student_of(method, guidance=w)), teacher) for w in (1.0, 1.5))
    assert build_teacher(plain, teacher.denoiser) is teacher.denoiser
    guided = build_teacher(guiding, teacher.denoiser)
    x, sigma, labels = torch.ones(2, 1, 8, 8), torch.full((2,), 3.0), torch.tensor([0, 2])
    own, null = teacher.denoiser(x, sigma, labels), teacher.denoiser(x, sigma, torch.tensor([3, 3]))
    assert isinstance(guided, Guided)
    assert (own - null).abs().max() > 1e-3
    torch.testing.assert_close(guided(x, sigma, labels), null + 1.5 * (own - null))


def test_guidance_by_a_teacher_without_a_null_class(saved):
    with pytest.raises(
        UserError, match="`student.objective.guidance` 2 needs a teacher with a null class; train"
    ) as refused:
        designed(a_run(student_of(guidance=2)), load_model(saved()))
    assert "\n" not in str(refused.value)


def test_three_stages_hand_on_their_networks(network):
    """Each begins from the one before; the teacher of the first is that of the last too."""
    stages = (
        stage("edm", name="teacher", label_dropout=0.1),
        stage("ect", name="middle", init="teacher"),
        stage("ict", name="student", init="middle", teacher="teacher", guidance=2.0),
    )
    teacher, middle, student = design_stages(a_run(*stages, network=network), SMALL, {})
    assert (teacher.info.null_label, middle.info.null_label, student.info.null_label) == (3, None, None)
    assert middle.init == teacher.model and middle.teacher is None
    assert student.init == middle.model and student.teacher == teacher.model
    assert middle.network == student.network == network


# ------------------------------------------------------------------------------------------------- a teacher of others


def by_teacher(path: Path | str, method: str = "cd", **fields) -> RunConfig:
    """A run that distills the model at `path`."""
    return a_run(stage(method, init=str(path), teacher=str(path)), **fields)


def test_no_model_is_opened_where_none_is_named():
    assert open_models(a_run(stage("edm")), SMALL) == {}


def test_a_teacher_that_fits_is_opened_once(saved):
    path = saved()
    ((name, found),) = open_models(by_teacher(path), SMALL).items()
    assert name == str(path) and found.path == path
    assert open_models(by_teacher(saved(num_class_embeds=None)), ImageKind(8, 1, 0))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("consistency", {}, "is a consistency model; give a diffusion model"),
        (
            "diffusion",
            {"in_channels": 3, "out_channels": 3},
            r"\(3, 8, 8\), the data \(1, 8, 8\); .*`data.res",
        ),
        ("diffusion", {"sample_size": 16}, r"\(1, 16, 16\), the data \(1, 8, 8\)"),
        ("diffusion", {"num_class_embeds": 4}, "number of classes of 4, the data 3; give one that fits"),
        ("diffusion", {"num_class_embeds": None}, "number of classes of 0, the data 3; set `use_labels` to false"),
    ],
)
def test_a_teacher_that_does_not_fit_the_data_is_refused(saved, kind, fields, message):
    with pytest.raises(UserError, match=message) as refused:
        open_models(by_teacher(saved(kind, **fields)), SMALL)
    assert "\n" not in str(refused.value)


def test_the_null_class_is_not_one_of_the_datas_classes(saved):
    assert open_models(by_teacher(saved(null_label=3, num_class_embeds=4)), SMALL)
    with pytest.raises(UserError, match="number of classes of 2, the data 3"):
        open_models(by_teacher(saved(null_label=2)), SMALL)


def test_a_file_that_is_missing_tells_where_it_is_published(tmp_path):
    missing = stage("ect", init=str(tmp_path / "edm.pkl"), published_at="https://example.com/models/edm.pkl")
    message = (
        "`student.init` .*edm.pkl does not exist; fetch it from https://example.com/models/edm.pkl, or name another"
    )
    with pytest.raises(UserError, match=message):
        open_models(a_run(missing), SMALL)
    other = replace(missing, init=str(tmp_path / "other.pkl"))
    with pytest.raises(UserError, match="^(?!.*example.com)"):
        open_models(a_run(other), SMALL)


@pytest.mark.parametrize("fields", [{"layers_per_block": 2}, {"patch_size": 1}])
def test_a_student_of_another_network_cannot_begin_as_the_teacher(saved, network, fields):
    teacher = load_model(saved(**fields))
    with pytest.raises(
        UserError, match="differs from that of .*leave out `network`, or set `student.init` to null"
    ) as e:
        designed(a_run(student_of(), network=network), teacher)
    assert "\n" not in str(e.value)
    designed(a_run(student_of(init=None, teacher="teacher"), network=network), teacher)
    student = begun(a_run(student_of()), teacher)
    assert same(student.network.state_dict(), teacher.denoiser.network.state_dict())


def test_a_student_begins_as_a_teacher_of_the_same_scale(saved):
    teacher = load_model(saved(info={"sigma_data": 0.25}))
    with pytest.raises(UserError, match="sigma_data 0.25, the run 0.5; set `sigma_data` to 0.25") as refused:
        designed(a_run(student_of()), teacher)
    assert "\n" not in str(refused.value)
    student = begun(a_run(student_of(), sigma_data=0.25), teacher)
    assert student.scaling.sigma_data == 0.25  # pyright: ignore
    # One that begins anew may have a scale of its own.
    designed(a_run(student_of(init=None, teacher="teacher")), teacher)


@pytest.mark.parametrize("name", ["edm_cat256_tiny.pt", "ema_0.9999_600000.pt"])
def test_a_teacher_of_openais(openai_pt, name):
    """A name that says nothing of the kind is no obstacle: the run says that it is a teacher."""
    images = ImageKind(32, 3, 0)
    path = openai_pt(name)
    (teacher,) = open_models(by_teacher(path), images).values()
    assert teacher.info.kind == "diffusion" and teacher.info.noise_embedding == "adm"
    run = a_run(student_of("cd"))
    student = begun(run, teacher, images)
    assert isinstance(student.network, UNet) and student.network.config == teacher.config
    assert same(student.network.state_dict(), teacher.denoiser.network.state_dict())
    assert student.scaling == ConsistencyScaling(0.002, 0.5, "adm")


def test_a_consistency_model_of_openais_is_no_teacher(openai_pt):
    with pytest.raises(UserError, match="is a consistency model; give a diffusion model"):
        open_models(by_teacher(openai_pt("cd_cat256_l2.pt")), ImageKind(32, 3, 0))


@pytest.mark.parametrize(
    ("method", "kind", "scaling"),
    [
        ("cd", "consistency", ConsistencyScaling(0.002, 0.5, "edm")),
        ("pd", "diffusion", EDMScaling(0.5, "edm")),
        ("scd", "consistency", ConsistencyScaling(0.0, 0.5, "edm")),
    ],
)
def test_a_teacher_of_edms(edm_pkl, method, kind, scaling):
    """Its noise embedding is ln(sigma)/4, and so is the student's, whatever the run has for new ones."""
    images = ImageKind(16, 3, 5)
    (teacher,) = open_models(by_teacher(edm_pkl(), method), images).values()
    run = a_run(student_of(method), noise_embedding="adm")
    design = designed(run, teacher, images)
    student = build_model(run, design, teacher)
    assert isinstance(student.network, SongUNet)
    assert student.network.config == replace(teacher.config, augment_dim=0)  # pyright: ignore
    assert teacher.config.augment_dim == 9  # pyright: ignore
    weights = state(teacher.denoiser.network)
    del weights["map_augment.weight"]
    assert same(student.network.state_dict(), weights)
    assert (design.info.kind, design.info.noise_embedding) == (kind, "edm")
    assert not teacher.info.clip and design.info.clip == (kind == "consistency")
    found = student.scaling
    assert [found.c_skip(torch.tensor([3.0])), found.c_noise(torch.tensor([3.0]))] == [
        scaling.c_skip(torch.tensor([3.0])),
        scaling.c_noise(torch.tensor([3.0])),
    ]
    objective = build_objective(run, design, student, teacher=teacher.denoiser)
    assert getattr(objective, "teacher", getattr(objective, "first_teacher", None)) is teacher.denoiser


def test_a_student_with_the_teachers_network_has_its_noise_embedding_even_if_it_begins_anew(edm_pkl):
    images = ImageKind(16, 3, 5)
    (teacher,) = open_models(by_teacher(edm_pkl()), images).values()
    run = a_run(stage("cd", teacher="teacher"))
    assert designed(run, teacher, images).info.noise_embedding == "edm"
    assert designed(replace(run, noise_embedding="adm"), teacher, images).info.noise_embedding == "adm"


def test_a_teacher_with_other_scalings_can_teach_but_not_be_begun_from(edm_pkl, network):
    images = ImageKind(16, 3, 5)
    (teacher,) = open_models(by_teacher(edm_pkl("VPPrecond")), images).values()
    assert teacher.info.preconditioning == "vp"
    with pytest.raises(UserError, match="cannot be begun from: its scalings are those of vp; set `student.init`") as e:
        designed(a_run(student_of("cd")), teacher, images)
    assert "\n" not in str(e.value)
    run = a_run(stage("cd", teacher="teacher"), network=network)
    design = designed(run, teacher, images)
    student = build_model(run, design)
    assert isinstance(student.network, PatchedUNet) and design.info.noise_embedding == "adm"
    objective = build_objective(run, design, student, teacher=teacher.denoiser)
    assert isinstance(objective, ConsistencyObjective)


# ---------------------------------------------------------------------------------------------------------- objectives


CHANGES = {"pd": {"start_scales": 4}}


@pytest.mark.parametrize("name", METHODS)
def test_the_objective_of_every_method(name, network, teacher):
    own = student_of(name, steps=40, **CHANGES.get(name, {}))
    run = a_run(own, network=network)
    design = designed(run, teacher)
    student = build_model(run, design, teacher)
    objective = build_objective(run, design, student, teacher=teacher.denoiser)
    assert objective.config == own.objective  # pyright: ignore
    assert getattr(objective, "sigma_data", 0.5) == 0.5
    info = design.info
    if name == "edm":
        assert info.kind == "diffusion" and isinstance(own.objective, DenoisingConfig)
        return
    assert getattr(objective, "total_steps", 40) == 40
    assert (info.sigma_min, info.sigma_max, info.rho) == (
        own.objective.sigma_min,
        own.objective.sigma_max,
        own.objective.rho,
    )
    if name == "pd":
        assert (info.kind, info.solver, info.steps) == ("diffusion", "progressive", 1)
    else:
        assert (info.kind, info.num_train_timesteps) == ("consistency", 40)


@pytest.mark.parametrize("asked", [False, True])
def test_activation_checkpointing_reaches_the_networks_that_are_trained(asked, network, teacher):
    run = a_run(student_of("dmd2"), network=network, activation_checkpointing=asked)
    design = designed(run, teacher)
    student = build_model(run, design, teacher)
    critics = build_objective(run, design, student, teacher=teacher.denoiser).critics()
    trained = [student.network, *(critic.network.denoiser.network for critic in critics.values())]
    assert len(trained) == 2
    for one in trained:
        assert {block.recomputes for block in one.blocks()} == {asked}
    assert not any(block.recomputes for block in teacher.denoiser.network.blocks())


def test_a_network_without_blocks_is_refused(network, monkeypatch):
    run = a_run(stage("edm"), network=network, activation_checkpointing=True)
    monkeypatch.setattr(build, "build_network", lambda *_: torch.nn.Linear(1, 1))
    message = "^`activation_checkpointing`: Linear of `student` has no blocks that can be computed again; set it to fal"
    with pytest.raises(UserError, match=message):
        build_model(run, designed(run))


def test_guidance_reaches_the_objective(network, teacher):
    run = a_run(student_of("cd", guidance=2.0), network=network)
    design = designed(run, teacher)
    student = build_model(run, design, teacher)
    objective = build_objective(run, design, student, teacher=teacher.denoiser)
    assert isinstance(objective, ConsistencyObjective) and isinstance(objective.teacher, Guided)
    assert (objective.teacher.scale, objective.teacher.null_label) == (2.0, 3)


def test_lpips_is_read_from_the_files_that_the_config_names(network, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "load_lpips", lambda vgg, heads: asked.append((vgg, heads)) or torch.nn.Identity())
    build.open_perceptual(a_run(stage("ct", distance="lpips"), lpips=LPIPSConfig("a.pth", "b.pth"), network=network))
    assert asked == [("a.pth", "b.pth")]


def test_what_a_method_refuses_is_one_line_for_the_user(network):
    run = a_run(stage("ct"), network=network)
    design = designed(run)
    other = replace(design, stage=replace(design.stage, objective=METHODS["ct"].config(step="heun"), teacher="x"))
    with pytest.raises(UserError, match="^`student`: step 'heun' needs a teacher$"):
        build_objective(run, other, build_model(run, design))
    with pytest.raises(ValueError, match="`steps` 4 are too few for 3 phases; give at least 5"):
        stage("pd", init="x", steps=4, start_scales=4)
