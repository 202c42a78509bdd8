"""The solvers of the probability-flow ODE that a diffusion model can be sampled with: one row each.

A new solver is one file, whose function is called as the others are (`unistep.samplers.ode` has their common parts),
and one row here. A solver is imported when it is used: the names alone need no torch.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from unistep.checks import check_choice


@dataclass(frozen=True)
class Solver:
    """A row of `SOLVERS`.

    Args:
        name: name on the command line and in model folders.
        title: name in the documentation.
        place: `module:function` of the solver; called as function(denoiser, x_T, num_steps, class_labels, *, sigma_min,
            sigma_max, rho, clip), where x_T is unit Gaussian noise.
        evaluations: number of network evaluations an image for a number of steps.
        order: order of convergence.
        churns: true if the solver takes a `Churn` as the keyword `churn`.
        stochastic: true if the solver draws fresh noise, from a `NoiseSource` given as the keyword `noise`.
    """

    name: str
    title: str
    place: str
    evaluations: Callable[[int], int]
    order: int = 1
    churns: bool = False
    stochastic: bool = False

    def function(self) -> Callable[..., Any]:
        """Imports the solver."""
        return pkgutil.resolve_name(self.place)


_ROWS = (
    Solver("heun", "Heun's method", "unistep.samplers.heun:heun", lambda steps: 2 * steps - 1, order=2, churns=True),
    Solver("euler", "Euler's method", "unistep.samplers.euler:euler", lambda steps: steps),
    Solver("dpm2", "DPM-Solver-2", "unistep.samplers.dpm2:dpm2", lambda steps: 2 * steps, order=2, churns=True),
    Solver(
        "ancestral", "ancestral Euler", "unistep.samplers.ancestral:ancestral", lambda steps: steps, stochastic=True
    ),
    Solver("progressive", "Euler down to sigma_min", "unistep.samplers.progressive:progressive", lambda steps: steps),
)

SOLVERS: Mapping[str, Solver] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name; the first is the default."""

# A Literal of the names at run time, for help texts and for the check of files; to a type checker a string.
if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = Literal[*SOLVERS]


def find_solver(name: str) -> Solver:
    """Finds a solver by name.

    Raises:
        UserError: there is none of that name.
    """
    check_choice("solver", name, tuple(SOLVERS))
    return SOLVERS[name]
