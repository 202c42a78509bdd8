"""A plan from the counts of a config and the figures of hardware, published or measured here."""

import warnings
from dataclasses import replace
from typing import Any

import torch

from unistep.config import RunConfig
from unistep.errors import UserError
from unistep.networks.block import blocks_of
from unistep.workflows.estimate.at_once import AtOnce, measure_at_once
from unistep.workflows.estimate.count import FP32
from unistep.workflows.estimate.design import designed
from unistep.workflows.estimate.estimate import estimate
from unistep.workflows.estimate.hardware import LINK_SHARE, MEMORY_SHARE, OVERLAP, UTILIZATION, hardware_of
from unistep.workflows.estimate.measure import KERNELS, free_memory
from unistep.workflows.estimate.plan_result import Plan
from unistep.workflows.estimate.result import StageEstimate
from unistep.workflows.estimate.scaling import Gathered, Speed, stage_plan, update_bytes
from unistep.workflows.estimate.units import in_bytes
from unistep.workflows.runs.network import build_network

_ROOM = 0.8  # share of the free memory that measured processes may take


def planned(
    config: RunConfig,
    name: str,
    nodes: int,
    gpu: str,
    gpus_per_node: int,
    utilization: float | None,
    price: float | None,
) -> Plan:
    """Plans a run; see `unistep.plan`.

    Args:
        config: run.
        name: its name.
        nodes: number of machines.
        gpu: row of the table, or cpu.
        gpus_per_node: number of devices of each machine.
        utilization: share of the rate of products that a step reaches; None is the measured one.
        price: price of a device for an hour; None is none.

    Raises:
        UserError: the batch cannot be parted, or the size of the images is open.
    """
    processes, engine = nodes * gpus_per_node, config.engine
    for stage in config.stages:
        stage.check_split(processes)
    if gpu == "cpu":
        found = estimate(config, 0, name=name)
        counted, memory = found.stages, None
        _check_room(counted, processes, free_memory(torch.device("cpu")))
        measured = measure_at_once(config, processes)
        threads = measured[0].threads
        device = f"CPU, {threads} thread{'s' * (threads > 1)} a process"
        speeds = [_speed(one, own, processes, engine) for one, own in zip(counted, measured, strict=True)]
        peaks = [own.peak for own in measured]
        steps = min(own.steps for own in measured)
        notes = [
            f"measured on this machine, as busy as it is now: {steps} steps of {processes} processes at once",
            "previews, checkpoints, evaluations, the reading of data and the memory that they take are not counted",
        ]
    else:
        row = hardware_of(gpu)
        precision = {"auto": "bf16", "fp32": "no"}.get(config.precision, config.precision)
        found = estimate(replace(config, precision="bf16" if precision != "no" else "fp32"), 0, name=name)
        counted, device, memory, peaks = found.stages, row.title, row.memory, [0] * len(found.stages)
        rate = row.tflops[precision] * 1e12 * (UTILIZATION if utilization is None else utilization)
        link = LINK_SHARE * (row.link if nodes == 1 else min(row.link, row.network))
        speeds = [
            Speed(
                one.flops.total / rate,
                update_bytes(one) / (MEMORY_SHARE * row.bandwidth),
                link,
                OVERLAP,
                one.flops.update / rate,
            )
            for one in counted
        ]
        share = UTILIZATION if utilization is None else utilization
        origin = "measured for images of 32x32 on an H100" if utilization is None else "as `utilization` has it"
        notes = [
            f"figures of the device: {row.source}",
            f"a step reaches {share:.0%} of the rate of products, {origin}",
            f"assumed: links and memory reach {LINK_SHARE:.0%} of their rates, the backward pass hides the exchange",
            "previews, checkpoints, evaluations and the reading of data are not counted",
        ]
    gathered = [_gathered(design.network, config.seed) for design in designed(config)[1]]
    plans = tuple(
        stage_plan(one, processes, engine, speed, whole, peak)
        for one, speed, whole, peak in zip(counted, speeds, gathered, peaks, strict=True)
    )
    for one in plans:
        if memory is not None and sum(one.memory.values()) > memory:
            remedies = ["more `accumulation`"]
            remedies += [] if config.activation_checkpointing else ["`activation_checkpointing`"]
            remedies += ["`engine` fsdp"] if engine == "ddp" else []
            size = in_bytes(sum(one.memory.values()))
            notes.append(f"{one.name}: {size} do not fit into a device; {' or '.join(remedies)} takes less")
    notes += [note for note in found.notes if note not in notes]
    return Plan(name, device, nodes, gpus_per_node, engine, plans, memory, price, tuple(notes))


def _check_room(stages: tuple[StageEstimate, ...], processes: int, free: int) -> None:
    """Passes where the processes find room to be measured.

    Raises:
        UserError: they do not.
    """
    for stage in stages:
        micro = stage.config.batch_size // (processes * stage.config.accumulation)
        needed = processes * round(stage.memory.total(micro) + KERNELS * stage.memory.activations(micro))
        if needed > _ROOM * free:
            raise UserError(
                f"{processes} processes take {in_bytes(needed)} for a step of {stage.name}, more than is free here",
                "plan for a row of the table",
            )


def _speed(stage: StageEstimate, measured: AtOnce, processes: int, engine: str) -> Speed:
    """The times of a process of this machine beside the others."""
    if not measured.steps:
        raise UserError(f"a step of {stage.name} takes too long to be measured here", "plan for a row of the table")
    sharded = engine == "fsdp" and processes > 1
    micro = stage.config.batch_size // (processes * stage.config.accumulation)
    sent = 2 * (processes - 1) / processes * stage.memory.parts["gradients"]
    return Speed(
        passes=measured.passes / micro,
        update=measured.update * (processes if sharded else 1),
        exchange=sent / measured.exchange if measured.exchange else float("inf"),
        overlap=0.0,  # what does not fit beside the passes was measured
    )


def _gathered(network: Any, seed: int) -> Gathered:
    """Bytes of the largest block of a network, and of what lies outside of its blocks."""
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        built = build_network(network, seed)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(built)]
    total = sum(p.numel() for p in built.parameters())
    return Gathered(FP32 * max(sizes, default=total), FP32 * max(0, total - sum(sizes)))
