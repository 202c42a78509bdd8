"""Flow maps: the protocol, their derivatives, and what the student is called with."""

import dataclasses

import pytest
import torch
from small_unet import move_off_zero, small_unet

from unistep.core import flow
from unistep.core.parameterization import EDMScaling, Preconditioned, expand
from unistep.core.random import ImageRandom, image_seed
from unistep.formats.model import ModelInfo
from unistep.networks.adm import UNet
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.objectives.facm import anchor_loss
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.objectives.velocity import average_velocity, total_derivative, unwrapped
from unistep.samplers.guidance import Guided
from unistep.workflows.runs.build import _FURTHER

UNET = small_unet(block_out_channels=(16, 16), layers_per_block=1, dropout=0.2)
SONG = SongUNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    num_class_embeds=3,
    model_channels=32,
    channel_mult=(1, 1),
    num_blocks=1,
    attn_resolutions=(4,),
)
KINDS = {"adm": (UNet, UNET), "song": (SongUNet, SONG)}
LABELS = torch.tensor([0, 1, 2, 0])


def lively_network(kind, generator, **inputs):
    network_class, config = KINDS[kind]
    network = network_class(dataclasses.replace(config, **inputs))
    move_off_zero(network, generator)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoiser_opened_as_a_flow_map_is_itself(kind, generator):
    """Bit for bit, at sigma_end = sigma and, before its training, at every other end and scale of guidance."""
    network_class, config = KINDS[kind]
    plain = lively_network(kind, generator)
    opened = network_class(dataclasses.replace(config, end_embedding=True, guidance_embedding=True))
    further = {name: v for name, v in opened.state_dict().items() if _FURTHER.search(name)}
    assert opened.state_dict().keys() == plain.state_dict().keys() | further.keys() and further
    opened.load_state_dict(further | plain.state_dict())
    denoiser = Preconditioned(plain, EDMScaling()).eval()
    flow_map = Preconditioned(opened, EDMScaling(), flow_map=True, guidance=2.0).eval()
    x, sigma = torch.randn(4, 1, 8, 8, generator=generator), torch.tensor([0.01, 0.5, 3.0, 80.0])
    with torch.no_grad():
        expected = denoiser(x, sigma, LABELS)
        for end in (sigma, sigma / 2, None):
            assert torch.equal(flow_map(x, sigma, LABELS, end, guidance=torch.full((4,), 5.0)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_and_the_scale_are_inputs(kind, generator):
    network = lively_network(kind, generator, end_embedding=True, guidance_embedding=True).eval()
    model = Preconditioned(network, EDMScaling(noise_embedding="edm"), flow_map=True, guidance=2.0)
    x, sigma = torch.randn(4, 1, 8, 8, generator=generator), torch.full((4,), 2.0)
    with torch.no_grad():
        to_data, own = model(x, sigma, LABELS), torch.full((4,), 2.0)
        assert torch.equal(to_data, model(x, sigma, LABELS, torch.zeros(4), guidance=own))
        assert not torch.allclose(to_data, model(x, sigma, LABELS, sigma / 2))
        assert not torch.allclose(to_data, model(x, sigma, LABELS, guidance=torch.full((4,), 5.0)))
    with pytest.raises(ValueError, match="this network needs c_end"):  # it would be another function
        Preconditioned(network, EDMScaling())(x, sigma, LABELS)
    with pytest.raises(ValueError, match="this network has no input c_end"):
        Preconditioned(lively_network(kind, generator), EDMScaling(), flow_map=True)(x, sigma, LABELS)
    with pytest.raises(ValueError, match="no input for the end"):
        Preconditioned(network, EDMScaling())(x, sigma, LABELS, sigma)


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_that_of_finite_differences(kind, generator):
    """In double precision, with dropout of the same mask in all evaluations."""
    network = lively_network(kind, generator, end_embedding=True).double().train()
    student = Preconditioned(network, EDMScaling(noise_embedding="edm"), flow_map=True)
    z, v = (torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    t, r = torch.tensor([[0.3, 0.5, 0.8, 0.95], [0.1, 0.5, 0.0, 0.4]], dtype=torch.float64)
    u = average_velocity(student, 3)
    value, derivative = total_derivative(u, z, t, r, v, LABELS)
    with torch.no_grad():
        torch.testing.assert_close(value, u(z, t, r, LABELS))
        h = 1e-4
        ahead, behind = (u(z + s * h * v, t + s * h, r, LABELS) for s in (1, -1))
    difference = (ahead - behind) / (2 * h)
    # Embeddings are in fp32, whose rounding is h times as large in the difference.
    assert float((derivative - difference).abs().max() / derivative.abs().max()) < 1e-3


def test_both_passes_drop_the_same_units(generator):
    """The primal of the derivative is the graded output: masks of the derivative are those of the loss."""
    student = Preconditioned(
        lively_network("adm", generator, end_embedding=True).train(), EDMScaling(noise_embedding="edm"), flow_map=True
    )
    z, t = torch.randn(4, 1, 8, 8, generator=generator), torch.full((4,), 0.5)
    value, _ = total_derivative(average_velocity(unwrapped(student), 7), z, t, t / 2, z, LABELS)
    torch.testing.assert_close(value, average_velocity(student, 7)(z, t, t / 2, LABELS).detach())
    other = average_velocity(student, 8)(z, t, t / 2, LABELS)
    assert float((value - other).abs().max()) > 1e-2


def test_velocities_of_the_paths(generator):
    def teacher(x, sigma, labels=None, /):
        return 0.3 * x + (0 if labels is None else 0.1 * expand(labels.to(x.dtype), 4))

    x, n = (torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    z = flow.mixed(x, n, t)
    noisy = z / expand(1 - t, 4), flow.sigma_of(t), LABELS

    def path(name, **fields):
        taught = ObjectiveInputs(torch.nn.Identity(), 10, teacher=fields.pop("teacher", None))
        return METHODS[name].config(**fields).build(taught).path_velocity(x, n, z, t, LABELS)  # pyright: ignore

    torch.testing.assert_close(path("meanflow"), n - x)
    torch.testing.assert_close(path("facm", teacher=teacher), (z - teacher(*noisy)) / expand(t, 4))
    guided = Guided(teacher, 3.0, null_label=3)
    moved = guided.correction(*noisy) / expand(t, 4)
    torch.testing.assert_close(path("soflow", guidance=3.0, teacher=guided), n - x - moved)
    torch.testing.assert_close(path("facm", guidance=3.0, teacher=guided), (z - teacher(*noisy)) / expand(t, 4) - moved)


@pytest.mark.parametrize("name", ["meanflow", "imf", "soflow", "facm"])
def test_needs_an_input_for_the_end(name, generator):
    student = Preconditioned(torch.nn.Identity(), EDMScaling())
    teacher = student if METHODS[name].config().needs_teacher else None
    objective = METHODS[name].config().build(ObjectiveInputs(student, 10, teacher=teacher))

    with pytest.raises((ValueError, TypeError), match="end of a trajectory|end of the trajectory|unexpected keyword"):
        objective.loss(student, torch.zeros(2, 1, 4, 4), None, 0, ImageRandom([0, 1]), None)


@pytest.mark.parametrize("name", ["meanflow", "imf", "soflow"])
def test_a_self_guiding_student_learns_a_null_class_and_trains(name, generator):
    changes = {"meanflow": {"omega": 2.0, "kappa": 0.5}, "soflow": {"omega": 3.0, "mix": 0.5}}.get(name, {})
    config = METHODS[name].config(label_dropout=0.5, **changes)
    assert config.null_class and config.network()["end_embedding"]
    inputs = {"guidance_embedding": config.network().get("guidance_embedding", False)}
    network = lively_network("adm", generator, end_embedding=True, num_class_embeds=4, **inputs)
    guidance = config.model().get("guidance_scale")
    assert (guidance is not None) == inputs["guidance_embedding"] == (name == "imf")
    student = Preconditioned(network, EDMScaling(noise_embedding="edm"), flow_map=True, guidance=guidance)
    with pytest.raises(ValueError, match="null class"):
        config.build(ObjectiveInputs(student, 10))
    objective = config.build(ObjectiveInputs(student, 10, null_label=3))

    x = torch.randn(4, 1, 8, 8, generator=generator)
    losses = objective.loss(student, x, LABELS, 3, ImageRandom([image_seed(0, i) for i in range(4)]), 5)
    losses.mean().backward()
    assert losses.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("name", "gamma"), [("soflow", 1.0), ("facm", 1.0), ("meanflow", 0.0), ("imf", 0.0)])
def test_models_are_sampled_as_published(name, gamma):
    """SoFlow and FACM have fresh noise between their jumps; the others stay on one trajectory."""
    assert ModelInfo(**METHODS[name].config().model()).gamma == gamma


def test_a_velocity_of_one_channel_has_no_angle():
    """Its gradient would be 1e8 where a value is 0, as in the dark background of digits."""
    found = torch.tensor([0.0, 1e-9, 0.5, -1.0]).view(1, 1, 2, 2).requires_grad_()
    anchor_loss(found, torch.ones(1, 1, 2, 2)).sum().backward()
    assert found.grad is not None and float(found.grad.abs().max()) <= 2
