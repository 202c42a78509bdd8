"""`unistep.plan`: memory, communication, pace, hours and cost of a recipe on hardware that is not here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unistep.arguments import plain_arguments
from unistep.checks import check_range
from unistep.errors import UserError
from unistep.workflows.estimate.hardware import GPUName
from unistep.workflows.train import Recipe

if TYPE_CHECKING:
    from unistep.workflows.estimate.plan_result import Plan

_MOST_NODES, _MOST_OF_A_NODE = 100_000, 1024


@plain_arguments(empty=["recipe"])
def plan(
    recipe: Recipe,
    *,
    nodes: int = 1,
    gpu: GPUName = "H100",
    gpus_per_node: int = 8,
    utilization: float | None = None,
    price: float | None = None,
    **overrides: Any,
) -> "Plan":
    """Plans a recipe on hardware that is not here: memory, communication, pace, hours and cost of every stage.

    Parameters, FLOPs and memory are counted as by `unistep.train(..., dry_run=True)`; rates are those of a table. With
    `cpu` steps and the memory of kernels and libraries are measured here, on processes that are started for it.

    Args:
        recipe: name of a recipe, a .yaml file, or a config.
        nodes: number of machines.
        gpu: A100, H100, H200 or L40S; or cpu, for processes of this machine.
        gpus_per_node: number of devices, or of processes, of each machine.
        utilization: share of the rate of products that a step reaches; default: 0.14, as measured for images of 32x32
            on an H100; larger networks reach more.
        price: price of a device for an hour, in any currency; default: no cost.
        **overrides: keys of the recipe, nested; a stage has its name, as student={"steps": 500}.

    Returns:
        The plan, which prints as a table.

    Raises:
        UserError: no such recipe, a wrong value, a batch that cannot be parted, or images of unknown size.

    Example:
        >>> import unistep
        >>> tiny = {"block_out_channels": [8, 8], "attention_head_dim": 8}
        >>> made = unistep.plan("mnist-quick", gpus_per_node=4, network=tiny)
        >>> made.stages[0].micro_batch, made.stages[0].exchange > 0
        (16, True)
    """
    check_range("nodes", nodes, 1, _MOST_NODES)
    check_range("gpus_per_node", gpus_per_node, 1, _MOST_OF_A_NODE)
    check_range("utilization", utilization, 0.001, 1)
    check_range("price", price, 0, 1e6)
    if gpu == "cpu" and nodes > 1:
        raise UserError("is for machines like this one, of which one can be measured", "give 1", field="nodes")
    from unistep.workflows.estimate.planning import planned
    from unistep.workflows.train import prepared

    _check_mapping(overrides)
    config, folder = prepared(recipe, None, None, None, None, None, overrides)
    return planned(config, folder.name, nodes, gpu, gpus_per_node, utilization, price)


def _check_mapping(overrides: Mapping[str, Any]) -> None:
    for name in ("output", "resume", "skip_to"):
        if name in overrides:
            raise UserError("is for training; a plan needs the recipe", "leave it out", field=name)
