"""Plans: what travels, what is held, how long it takes, and what is refused."""

import json
from dataclasses import replace

import pytest

import unistep
from unistep.errors import UserError
from unistep.training.config import TrainerConfig
from unistep.workflows.estimate.count import Flops
from unistep.workflows.estimate.hardware import HARDWARE
from unistep.workflows.estimate.measure import Memory
from unistep.workflows.estimate.result import StageEstimate
from unistep.workflows.estimate.scaling import Gathered, Speed, stage_plan

TINY = {"block_out_channels": [8, 8], "attention_head_dim": 8}


@pytest.fixture(scope="module")
def counted():
    """A stage of 1,000 parameters on one device."""
    parts = {"weights": 4000, "gradients": 4000, "optimizer": 8000, "averages": 4000}
    flops = Flops(100, {"student, forward": 100, "the rest of the loss": 1, "backward": 200})
    config = TrainerConfig(steps=1000, batch_size=64)
    return StageEstimate("teacher", "UNet", "EDM", config, flops, Memory(parts, 10, 100), None)


SPEED = Speed(passes=0.01, update=0.001, exchange=1e9, overlap=0.0)


def test_replicas_hold_all_and_exchange_the_gradients_twice_around(counted):
    weights = counted.memory.parts["weights"]
    one, four = (stage_plan(counted, n, "ddp", SPEED, Gathered(0, 0)) for n in (1, 4))
    assert one.exchange == 0 and four.exchange == round(2 * 3 / 4 * weights)
    assert four.memory["gradients' buckets"] == weights and "gradients' buckets" not in one.memory
    assert four.memory["optimizer"] == one.memory["optimizer"] == 2 * weights
    assert four.micro_batch == one.micro_batch // 4 and four.memory["activations"] < one.memory["activations"]
    assert four.step_seconds["exchange"] == pytest.approx(four.exchange / 1e9)
    assert one.images_per_second == pytest.approx(64 / (64 * 0.01 + 0.001))
    assert one.hours == pytest.approx(one.images / one.images_per_second / 3600)


def test_shards_hold_a_part_and_gather_the_weights_for_every_evaluation(counted):
    weights = counted.memory.parts["weights"]
    found = stage_plan(counted, 4, "fsdp", SPEED, Gathered(1000, 10))
    assert found.memory["weights"] == -(-weights // 4) and found.memory["gathered"] == 2010
    assert found.exchange == round(3 / 4 * (2 * weights + weights))
    assert found.step_seconds["update"] == pytest.approx(SPEED.update / 4)


def test_products_of_the_optimizer_are_not_shared(counted):
    found = stage_plan(counted, 4, "fsdp", replace(SPEED, directions=0.002), Gathered(0, 0))
    assert found.step_seconds["update"] == pytest.approx(SPEED.update / 4 + 0.002)


def test_muon_keeps_less_and_computes_more():
    network = TINY | {"block_out_channels": [64, 64]}
    adamw, muon = (
        unistep.plan("mnist-quick", gpu="H100", network=network, teacher={"optimizer": {"name": name}}).stages[0]
        for name in ("adamw", "muon")
    )
    assert 0.5 < muon.memory["optimizer"] / adamw.memory["optimizer"] < 0.6
    assert muon.step_seconds["update"] > adamw.step_seconds["update"]


def test_the_backward_pass_hides_what_fits_beside_it(counted):
    found = stage_plan(counted, 4, "ddp", Speed(0.01, 0.001, 1e9, 1.0), Gathered(0, 0))
    assert found.step_seconds["exchange"] == 0.0
    slow = stage_plan(counted, 4, "ddp", Speed(0.01, 0.001, 1e4, 0.5), Gathered(0, 0))
    assert slow.step_seconds["exchange"] == pytest.approx(slow.exchange / 1e4 - 0.5 * 16 * 0.01)


@pytest.mark.parametrize("gpu", [pytest.param(name, marks=[pytest.mark.slow] * (name != "H100")) for name in HARDWARE])
def test_every_row_is_planned_for(gpu):
    made = unistep.plan("mnist-quick", nodes=2, gpu=gpu, gpus_per_node=2, price=2, network=TINY)
    assert made.cost == pytest.approx(2 * 4 * made.hours) and len(made.stages) == 2
    assert json.loads(json.dumps(made.to_dict()))["stages"][0]["images_per_second"] > 0
    assert HARDWARE[gpu].title in str(made) and "Note: figures of the device" in str(made)


@pytest.mark.slow
def test_half_the_utilization_is_half_the_pace():
    fast, slow = (unistep.plan("mnist-quick", utilization=u, network=TINY).stages[0] for u in (0.2, 0.1))
    name = "forward and backward"
    assert slow.step_seconds[name] == pytest.approx(2 * fast.step_seconds[name])


@pytest.mark.slow
def test_what_does_not_fit_is_told():
    made = unistep.plan("lsun256-edm", gpus_per_node=1)
    remedies = "more `accumulation` or `activation_checkpointing` or `engine` fsdp takes less"
    assert any(f"do not fit into a device; {remedies}" in note for note in made.notes)


@pytest.mark.slow
def test_a_plan_for_this_machine_is_measured():
    made = unistep.plan("mnist-quick", gpu="cpu", gpus_per_node=2, network=TINY)
    for stage in made.stages:
        assert stage.memory["kernels and libraries"] > 50e6 and stage.memory["copy for a checkpoint"] > 0
        assert stage.main_memory == 0 and stage.step_seconds["exchange"] >= 0 and stage.step_seconds["update"] > 0
    assert any("steps of 2 processes at once" in note for note in made.notes)


@pytest.mark.slow
def test_parts_of_networks_are_measured_together():
    """Nothing can be computed alone: the exchange is in the passes."""
    made = unistep.plan("mnist-quick", gpu="cpu", gpus_per_node=2, network=TINY, engine="fsdp")
    assert made.stages[1].step_seconds["exchange"] == 0 and made.stages[1].exchange > 0


def test_a_checkpoint_is_copied_into_main_memory(counted):
    """Weights, two moments and averages; by ddp those of one process, by fsdp a share in each, on a CPU beside all."""
    counted = replace(counted, memory=replace(counted.memory, copy=16_000))
    one, shares = (stage_plan(counted, 4, engine, SPEED, Gathered(0, 0)) for engine in ("ddp", "fsdp"))
    assert (one.main_memory, shares.main_memory) == (16_000, 4_000)
    measured = stage_plan(counted, 4, "ddp", SPEED, Gathered(0, 0), peak=100_000)
    assert measured.main_memory == 0 and sum(measured.memory.values()) == 116_000


@pytest.mark.slow
def test_what_processes_have_no_room_for_is_refused():
    with pytest.raises(UserError, match="more than is free here"):
        unistep.plan("lsun256-edm", gpu="cpu", gpus_per_node=64, teacher={"batch_size": 64})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"nodes": 0}, "`nodes`"),
        ({"gpu": "abacus"}, "`gpu`"),
        ({"gpus_per_node": 7}, "7"),
        ({"utilization": 0}, "`utilization`"),
        ({"price": -1}, "`price`"),
        ({"gpu": "cpu", "nodes": 2}, "`nodes`"),
        ({"output": "x"}, "`output`"),
        ({"network": {"layers": 3}}, "layers"),
    ],
)
def test_arguments(arguments, word):
    with pytest.raises(UserError) as caught:
        unistep.plan("mnist-quick", **arguments)
    assert word in str(caught.value) and "\n" not in str(caught.value)
