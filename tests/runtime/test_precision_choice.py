"""The precision that "auto" takes: by measurement on a CPU, and fp32 for small networks."""

import logging

import pytest
import torch
from torch import nn

import unistep
from unistep.generation import prepare
from unistep.pipelines import precision as of_pipelines
from unistep.runtime import precision
from unistep.runtime.precision import SMALL, bf16_gain, resolve_dtype, short_name, size_of
from unistep.workflows.models import as_model


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch):
    """Sets whether bf16 is faster."""

    def sets(value: bool) -> None:
        monkeypatch.setattr(precision, "bf16_is_faster", lambda: value)

    return sets


@pytest.mark.parametrize("gain", [True, False])
def test_auto_is_what_is_faster(gain: bool, faster):
    faster(gain)
    chosen, why = resolve_dtype("auto", "cpu", SMALL)
    assert chosen == (torch.bfloat16 if gain else torch.float32)
    assert why.startswith("bf16" if gain else "fp32")


def test_small_networks_are_the_same_on_every_machine(faster):
    faster(True)
    assert resolve_dtype("auto", "cpu", SMALL - 1)[0] == torch.float32
    assert resolve_dtype("bf16", "cpu", 1) == (torch.bfloat16, "as asked")
    assert size_of(unistep.load(dtype="fp32").denoiser) < SMALL


def test_the_gain_is_that_of_the_processor():
    gain = bf16_gain(64, 8)
    assert gain > 0
    if torch.cpu._is_avx512_bf16_supported():
        assert bf16_gain() > 1


@pytest.mark.parametrize("gain", [True, False])
def test_fp16_is_replaced_on_a_cpu(gain: bool, faster, caplog: pytest.LogCaptureFixture):
    faster(gain)
    with caplog.at_level(logging.WARNING, "unistep"):
        model = unistep.load(dtype="fp16", device="cpu")
    found = max(model.denoiser.parameters(), key=lambda p: p.numel()).dtype
    assert found == (torch.bfloat16 if gain else torch.float32)
    assert caplog.messages == [f"`dtype` fp16 is slow on a CPU; {'bf16' if gain else 'fp32'} is taken"]


def test_a_runtime_that_has_fp32_alone_is_given_it(faster, monkeypatch: pytest.MonkeyPatch):
    faster(True)
    monkeypatch.setattr(precision, "SMALL", 1)
    taken = []
    monkeypatch.setattr(prepare, "prepared_model", lambda *given, **options: (taken.append(given[4]), (None, ""))[1])
    for runtime in ("onnxruntime", "openvino"):
        for asked in (None, "auto", "fp16"):
            as_model(None, device="cpu", dtype=asked, runtime=runtime)
    assert taken == ["fp32"] * 3 + ["bf16"] * 3


def test_load_takes_auto(faster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    faster(True)
    monkeypatch.setattr(precision, "SMALL", 1)
    with caplog.at_level(logging.INFO, "unistep"):
        model = unistep.load(device="cpu")
    assert torch.bfloat16 in {p.dtype for p in model.denoiser.parameters()}
    assert caplog.messages == ["dtype auto: bf16: faster than fp32 on this processor"]
    one = unistep.sample(num_images=2, device="cpu", progress=False).pixels
    assert torch.equal(one, unistep.sample(model, num_images=2, progress=False).pixels)
    assert not torch.equal(one, unistep.sample(num_images=2, device="cpu", dtype="fp32", progress=False).pixels)


def test_rounded_weights_are_not_written_in_silence(faster, tmp_path, caplog: pytest.LogCaptureFixture):
    faster(True)
    model = unistep.load(dtype="bf16", device="cpu")
    with caplog.at_level(logging.WARNING, "unistep"):
        unistep.convert(model, tmp_path / "model")
    assert [m for m in caplog.messages if m.startswith("the weights are rounded to bf16")]
    caplog.clear()
    unistep.convert(unistep.load(), tmp_path / "other")
    assert not [m for m in caplog.messages if "rounded" in m]


def test_the_pipeline_stays_fp32_and_says_once_what_auto_gives(
    faster, model_folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    faster(True)
    monkeypatch.setattr(of_pipelines, "SMALL", 1)
    of_pipelines._suggest.cache_clear()
    opens, folder = unistep.ConsistencyModelPipeline.from_pretrained, model_folder("consistency")
    with caplog.at_level(logging.WARNING, "unistep"):
        assert opens(folder, dtype="fp32").dtype == torch.float32
        assert caplog.messages == []
        assert [opens(folder).dtype for _ in range(2)] == [torch.float32] * 2
    assert caplog.messages == [
        'the network computes in float32, as in diffusers; `dtype="auto"` takes bfloat16 here, faster'
    ]
    of_pipelines._suggest.cache_clear()
    faster(False)
    caplog.clear()
    opens(folder)
    assert caplog.messages == []
    of_pipelines._suggest.cache_clear()


def test_the_pipeline_warns_of_fp16_once(faster, model_folder, caplog: pytest.LogCaptureFixture):
    faster(True)
    of_pipelines.warn_of_fp16.cache_clear()
    pipe = unistep.ConsistencyModelPipeline.from_pretrained(model_folder("consistency"), torch_dtype=torch.float16)
    with caplog.at_level(logging.WARNING, "unistep"):
        for _ in range(2):
            pipe(seeds=[0], output_type="pt")
    assert pipe.dtype == torch.float16  # it may go to a GPU yet
    assert caplog.messages == ['float16 is slow on a CPU; `dtype="bfloat16"` is fast']


def test_short_names():
    assert [short_name(one) for one in (torch.float32, torch.float16, torch.bfloat16)] == ["fp32", "fp16", "bf16"]


def test_size():
    assert size_of(nn.Linear(3, 4)) == 16
