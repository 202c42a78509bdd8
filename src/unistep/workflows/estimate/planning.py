"""A plan from the counts of a config and the figures of hardware, published or measured here."""

import warnings
from dataclasses import replace
from typing import Any

import torch

from unistep.config import RunConfig
from unistep.errors import UserError
from unistep.networks.block import blocks_of
from unistep.workflows.estimate.count import FP32
from unistep.workflows.estimate.design import designed
from unistep.workflows.estimate.estimate import estimate
from unistep.workflows.estimate.exchange import measure_exchange
from unistep.workflows.estimate.hardware import LINK_SHARE, MEMORY_SHARE, OVERLAP, UTILIZATION, hardware_of
from unistep.workflows.estimate.plan_result import Plan
from unistep.workflows.estimate.result import StageEstimate
from unistep.workflows.estimate.scaling import Gathered, Speed, stage_plan, update_bytes
from unistep.workflows.estimate.units import device_name, in_bytes
from unistep.workflows.runs.network import build_network

_STEPS = 10  # that are measured on a CPU


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
        # One process's share of the batch is measured, by itself.
        stages = tuple(replace(one, batch_size=one.batch_size // processes) for one in config.stages)
        found = estimate(replace(config, stages=stages), _STEPS, name=name)
        device, memory = device_name(found.device), None
        speeds, base, notes = _of_this_machine(found.stages, processes)
        pairs = zip(found.stages, config.stages, strict=True)
        counted = tuple(replace(one, config=stage) for one, stage in pairs)
    else:
        row = hardware_of(gpu)
        precision = {"auto": "bf16", "fp32": "no"}.get(config.precision, config.precision)
        found = estimate(replace(config, precision="bf16" if precision != "no" else "fp32"), 0, name=name)
        counted, device, memory, base = found.stages, row.title, row.memory, 0
        rate = row.tflops[precision] * 1e12 * (UTILIZATION if utilization is None else utilization)
        link = LINK_SHARE * (row.link if nodes == 1 else min(row.link, row.network))
        speeds = [
            Speed(one.flops.total / rate, update_bytes(one) / (MEMORY_SHARE * row.bandwidth), link, OVERLAP)
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
        stage_plan(one, processes, engine, speed, whole, base)
        for one, speed, whole in zip(counted, speeds, gathered, strict=True)
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


def _of_this_machine(stages: tuple[StageEstimate, ...], processes: int) -> tuple[list[Speed], int, list[str]]:
    """Measured times of each stage on processes of this machine, and the bytes of a bare process."""
    speeds, process, slowdown = [], 0, 1.0
    for stage in stages:
        measured = stage.measured
        if measured is None or measured.what == "one evaluation":
            raise UserError(f"a step of {stage.name} is too large to be measured here", "plan for a row of the table")
        gradients = stage.memory.parts["gradients"]
        rates = measure_exchange(processes, gradients)
        process, slowdown = rates.process, rates.slowdown
        sent = 2 * (processes - 1) / processes * gradients
        speeds.append(
            Speed(
                passes=slowdown * measured.seconds / measured.micro_batch,
                update=slowdown * measured.update,
                exchange=sent / rates.seconds if rates.seconds else float("inf"),
                overlap=0.0,  # the processors that would send compute
            )
        )
    note = f"measured on this machine: {processes} processes at once take {slowdown:.2f} times as long as one"
    return speeds, process, [note]


def _gathered(network: Any, seed: int) -> Gathered:
    """Bytes of the largest block of a network, and of what lies outside of its blocks."""
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        built = build_network(network, seed)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(built)]
    total = sum(p.numel() for p in built.parameters())
    return Gathered(FP32 * max(sizes, default=total), FP32 * max(0, total - sum(sizes)))
