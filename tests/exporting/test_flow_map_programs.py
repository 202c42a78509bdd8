"""Programs of flow maps: they take the end of each trajectory, and jump as `unistep sample` does."""

import pytest
import torch

import unistep
from unistep.core.random import ImageRandom, image_seeds
from unistep.engines.engine import EngineDenoiser
from unistep.engines.onnxruntime import OnnxRuntimeEngine
from unistep.errors import UserError
from unistep.exporting.cases import Cases
from unistep.exporting.make import make_program

pytest.importorskip("onnxruntime")


class NoEngine:
    """An `Engine` that computes nothing."""

    device, name = torch.device("cpu"), "none"

    def __call__(self, *inputs):
        raise AssertionError("it was called")


MAP = {"flow_map": True, "sigma_min": 0.0}


@pytest.fixture(scope="module")
def guided(saved):
    """A flow map of three classes with an input for the scale of guidance."""
    fields = {"end_embedding": True, "guidance_embedding": True, "num_class_embeds": 3}
    return saved("consistency", info=MAP | {"guidance_scale": 2.0}, **fields)


@pytest.fixture(scope="module")
def exported(guided, tmp_path_factory):
    """exported(to): the denoiser of `guided` in a format."""
    folder, made = tmp_path_factory.mktemp("maps"), {}

    def export(to):
        if to not in made:
            ending = {"onnx": ".onnx", "openvino": ".xml"}.get(to, ".pt2")
            made[to] = unistep.export(guided, folder / f"{to}{ending}", to=to, batches=[1, 3], progress=False)
        return made[to]

    return export


def test_the_inputs_name_the_end_and_the_scale(exported):
    names = [port.partition(" ")[0] for port in exported("onnx").inputs]
    assert names == ["x_t", "sigma", "sigma_end", "guidance_scale", "class_labels"]
    assert all(row.within for row in exported("onnx").comparisons)


def test_the_comparison_covers_ends_and_scales(guided):
    model = unistep.load(guided)
    program = make_program(model, "denoiser")
    shares, scales = set(), set()
    for batch, _, _, (_, sigma, end, scale, _) in Cases(program, model.info, [1, 2, 5]):
        assert end.shape == scale.shape == (batch,) and (end <= sigma).all()
        shares |= {round(float(one), 3) for one in end / sigma}
        scales |= set(scale.tolist())
    assert shares == {0.0, 0.05, 0.3, 0.7, 1.0} and scales == {1.0, 2.0, 3.0}


def test_every_end_and_scale_is_that_of_the_model(guided, exported):
    ours, theirs = unistep.load(exported("onnx").path), unistep.load(guided)
    x_t, labels = 5 * torch.randn(4, *ours.image_shape), torch.tensor([0, 1, 2, 1])
    sigma, end = torch.tensor([80.0, 5.0, 5.0, 0.5]), torch.tensor([0.0, 5.0, 1.0, 0.2])
    scale = torch.tensor([1.0, 2.0, 4.0, 1.5])
    with torch.no_grad():
        for given in ((), (end,)):
            for guidance in (None, scale):
                expected = theirs.denoiser(x_t, sigma, labels, *given, guidance=guidance)
                assert torch.allclose(ours.denoiser(x_t, sigma, labels, *given, guidance=guidance), expected, atol=1e-4)
        assert not torch.allclose(theirs.denoiser(x_t, sigma, labels, end), theirs.denoiser(x_t, sigma, labels))


@pytest.mark.parametrize(
    "to", ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in ("openvino", "torch-export", "aoti"))]
)
def test_files_sample_and_edit_as_the_model_does(guided, exported, to):
    if to == "openvino":
        pytest.importorskip("openvino")
    model = unistep.load(exported(to).path, **({"trust_code": True} if exported(to).path.suffix == ".pt2" else {}))
    for options in ({}, {"steps": 3}, {"steps": 2, "gamma": 0.5, "guidance": 3.0}):
        ours = unistep.sample(model, num_images=4, progress=False, **options).pixels.int()
        theirs = unistep.sample(guided, num_images=4, progress=False, **options).pixels.int()
        assert (ours - theirs).abs().max() <= 1 and (ours != theirs).float().mean() < 1e-2
    images = unistep.sample(model, num_images=1, progress=False)
    ours, theirs = (
        unistep.edit(one, images, "inpaint", mask="lower", class_labels=1, progress=False)[0].candidates.int()
        for one in (model, guided)
    )
    assert (ours - theirs).abs().max() <= 1
    assert unistep.inspect(exported(to).path).parameters == unistep.inspect(guided).parameters


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("exports", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sampler_jumps_as_sample_does(guided, tmp_path, gamma, exports):
    options = {"steps": 3, "gamma": gamma, "guidance": 1.5}
    program = make_program(unistep.load(guided), "sampler", **options)
    draws = program.inputs[0].shape[0]
    assert draws == (3 if gamma else 1)
    random = ImageRandom(image_seeds(5, range(4)))
    noise = torch.stack([random.randn(1, 8, 8) for _ in range(draws)], dim=1)
    labels = [0, 2, 1, 1]
    if exports:
        path = unistep.export(guided, tmp_path / "s.onnx", batches=[1, 3], progress=False, **options).path
        program = OnnxRuntimeEngine(path)
    with torch.no_grad():
        ours = program(noise, torch.tensor(labels, dtype=torch.int32)).permute(0, 3, 1, 2)
    theirs = unistep.sample(guided, num_images=4, seed=5, class_labels=labels, progress=False, **options).pixels
    assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours != theirs).float().mean() < 2e-2


@pytest.mark.slow
def test_an_unconditional_map(saved, tmp_path):
    model = saved("consistency", info=MAP, end_embedding=True, num_class_embeds=None)
    made = unistep.export(model, tmp_path / "m.onnx", batches=[1, 3], progress=False)
    assert [port.partition(" ")[0] for port in made.inputs] == ["x_t", "sigma", "sigma_end"]
    ours = unistep.sample(str(made.path), num_images=3, steps=2, progress=False).pixels.int()
    assert (ours - unistep.sample(model, num_images=3, steps=2, progress=False).pixels.int()).abs().max() <= 1


@pytest.mark.slow
def test_an_edit_of_a_map(guided, tmp_path):
    made = unistep.export(guided, tmp_path / "e.onnx", program="edit", steps=2, batches=[1, 3], progress=False)
    assert all(row.within for row in made.comparisons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"program": "denoiser", "guidance": 2.0}, "`guidance` is for a sampler; a denoiser takes its scale"),
        ({"program": "edit", "gamma": 1.0}, "`gamma` is for a sampler, and this is an edit"),
        ({"gamma": 2.0}, "`gamma`|gamma"),
    ],
)
def test_options_of_jumps_are_checked(guided, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        unistep.export(guided, tmp_path / "m.onnx", progress=False, **options)
    assert not any(tmp_path.iterdir())


def test_jumps_are_for_flow_maps(saved, tmp_path):
    with pytest.raises(UserError, match="`gamma` 1 is for flow maps"):
        unistep.export(saved("consistency"), tmp_path / "m.onnx", gamma=1.0, progress=False)


def test_a_program_without_an_end_takes_none():
    given = torch.zeros(1, 1, 8, 8), torch.ones(1), None
    with pytest.raises(ValueError, match="no input for the end"):
        EngineDenoiser(NoEngine())(*given, torch.zeros(1))
    with pytest.raises(ValueError, match="or none for guidance"):
        EngineDenoiser(NoEngine(), flow_map=True)(*given, guidance=torch.ones(1))
