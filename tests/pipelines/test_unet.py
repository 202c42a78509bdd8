"""The network of a pipeline as diffusers calls it, and its place in memory."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.errors import UserError
from unistep.pipelines.offload import Offload

Pipe = ConsistencyModelPipeline
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 4])


@pytest.fixture
def network(lively: Callable[..., nn.Module]) -> nn.Module:
    return lively(patch_size=1, in_channels=3, out_channels=3, num_class_embeds=5)


@pytest.fixture
def pipe(network: nn.Module) -> Pipe:
    return Pipe(network, CMStochasticIterativeScheduler())


def test_every_way_to_call_it_is_the_networks(pipe: Pipe, network: nn.Module):
    t = pipe.scheduler.timesteps[5]
    expected = network(X, t.float().expand(2), Y)
    for timestep in (t, float(t), t[None], t.expand(2), t.float()):
        output = pipe.unet(X, timestep, class_labels=Y)
        assert torch.equal(output.sample, expected)
        assert output["sample"] is output[0] is output.sample
    assert torch.equal(pipe.unet(X, 100, Y).sample, network(X, torch.full((2,), 100.0), Y))
    for result in (pipe.unet(X, t, Y, return_dict=False), pipe.unet(X, t, Y, False)):
        assert isinstance(result, tuple) and torch.equal(result[0], expected)
    # and as every network of this package
    assert torch.equal(pipe.unet(X, t.float().expand(2), Y, generator=None), expected)
    sigma = torch.full((2,), 3.0)
    ours, its = (Preconditioned(n, ConsistencyScaling())(X, sigma, Y) for n in (pipe.unet, network))
    assert torch.equal(ours, its)


def test_the_parts_are_the_networks(pipe: Pipe, network: nn.Module):
    unet: Any = pipe.unet
    assert list(unet.state_dict()) == list(network.state_dict())
    assert [id(p) for p in unet.parameters()] == [id(p) for p in network.parameters()]
    assert unet.conv_in is network.get_submodule("conv_in") and unet.network is network
    unet.train()
    assert network.training
    unet.eval().requires_grad_(True)
    assert not network.training and all(p.requires_grad for p in network.parameters())
    unet(X, 1.0, Y).sample.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    weights = {name: torch.zeros_like(value) for name, value in unet.state_dict().items()}
    unet.load_state_dict(weights)
    assert not any(p.any() for p in network.parameters())
    replacement = copy.deepcopy(unet.conv_in)
    unet.conv_in = replacement
    assert network.get_submodule("conv_in") is replacement
    assert unet.num_parameters() == sum(p.numel() for p in network.parameters())
    assert unet.num_parameters(only_trainable=True, exclude_embeddings=True) < unet.num_parameters()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unet.nothing


def test_config_device_and_dtype(pipe: Pipe):
    unet: Any = pipe.unet
    assert unet.config.sample_size == unet.config["sample_size"] == 16 and unet.config.get("x", 3) == 3
    assert (unet.dtype, unet.device) == (torch.float32, torch.device("cpu")) and not unet.is_gradient_checkpointing
    assert diffusers.UNet2DModel(**unet.config).config.sample_size == 16
    unet.half()
    assert {p.dtype for p in unet.parameters()} == {torch.float16} and pipe.dtype == torch.float16
    assert torch.isfinite(pipe(class_labels=1, generator=0, output_type="pt").images).all()
    unet.to(torch.float32).to(memory_format=torch.channels_last)
    assert pipe(class_labels=1, generator=0, output_type="pt").images.dtype == torch.float32


def test_it_is_saved_as_diffusers_saves_it(pipe: Pipe, tmp_path: Path):
    pipe.unet.save_pretrained(tmp_path / "u")
    pipe.unet.save_pretrained(tmp_path / "v", variant="fp16", max_shard_size="1GB")
    pipe.unet.save_pretrained(tmp_path / "w", is_main_process=False)
    assert not (tmp_path / "w").exists()
    for folder, variant in (("u", None), ("v", "fp16")):
        theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / folder, variant=variant)
        torch.testing.assert_close(theirs(X, 1.0, Y).sample, pipe.unet(X, 1, Y).sample, rtol=0, atol=1e-5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        pipe.unet.save_pretrained(tmp_path / "file")


def test_hooks_see_a_call(pipe: Pipe):
    seen: list[Any] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    pipe.unet.register_forward_hook(lambda module, args, output: seen.append(output))
    pipe(class_labels=2, generator=0)
    assert seen[0][2].tolist() == [2] and isinstance(seen[1][0], Tensor)


def test_calls_within_other_modes(pipe: Pipe):
    call: dict[str, Any] = {"class_labels": 1, "generator": 0, "num_inference_steps": 2, "output_type": "pt"}
    expected = pipe(**call).images
    with torch.inference_mode():
        assert torch.equal(pipe(**call).images, expected)
    assert torch.equal(pipe(**call).images, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pipe(**call).images, expected, rtol=0, atol=0.1)


def test_a_wrong_call_says_so(pipe: Pipe):
    for call in (
        lambda: pipe.unet(X, 1.0),  # no labels
        lambda: pipe.unet(X[..., :15], 1.0, Y),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ memory


class Moved(nn.Module):
    """Records where it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def to(self, place: Any) -> "Moved":
        self.places.append(str(place))
        return self


def test_an_offloaded_network_is_moved_by_the_first_call_and_back_by_the_last():
    offload, unet, meeting = Offload(torch.device("meta")), Moved(), threading.Barrier(3)

    def call(i: int) -> None:
        with offload.holding(unet) as device:
            assert device.type == "meta" and unet.places == ["meta"]
            meeting.wait(10)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))
    assert unet.places == ["meta", "cpu"]
    with pytest.raises(RuntimeError), offload.holding(unet):
        raise RuntimeError
    assert unet.places == ["meta", "cpu"] * 2
    assert copy.deepcopy(offload).device == offload.device


def test_a_pipeline_computes_on_the_accelerator_and_leaves_it(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    """With the CPU in the part of an accelerator."""
    places: list[str] = []
    monkeypatch.setattr("unistep.pipelines.offload.Offload.holding", _recorded(places))
    expected = pipe(class_labels=1, generator=0, output_type="pt").images
    pipe._offload = Offload(torch.device("cpu"))
    assert torch.equal(pipe(class_labels=1, generator=0, output_type="pt").images, expected) and places == ["in", "out"]
    assert pipe._execution_device == torch.device("cpu")
    with pytest.raises(UserError):
        pipe(class_labels=[1, 2], generator=0)
    assert places == ["in", "out"] * 2
    pipe.remove_all_hooks()
    pipe(class_labels=1, generator=0)
    assert len(places) == 4


def _recorded(places: list[str]) -> Callable[..., Any]:
    from contextlib import contextmanager

    @contextmanager
    def holding(self: Offload, unet: nn.Module):
        places.append("in")
        try:
            yield self.device
        finally:
            places.append("out")

    return holding


@pytest.mark.gpu
def test_offloading_on_a_gpu(pipe: Pipe):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    expected = pipe(class_labels=1, generator=0, num_inference_steps=2, output_type="pt").images
    pipe.enable_model_cpu_offload()
    assert pipe.device.type == "cpu" and pipe._execution_device.type == "cuda"
    images = pipe(class_labels=1, generator=0, num_inference_steps=2, output_type="pt").images
    assert images.device.type == "cuda" and pipe.device.type == "cpu"
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-3)
    assert pipe.to("cuda").device.type == "cuda" and pipe._offload is None
