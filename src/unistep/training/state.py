"""The state of a training: all that a checkpoint holds, and its way in and out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.objectives.protocol import Objective
from unistep.training.config import TrainerConfig
from unistep.training.ema import EMA, own_part
from unistep.training.engines import Engine, build_engine
from unistep.training.evaluation import Best
from unistep.training.guard import Guard
from unistep.training.losses import Losses
from unistep.training.optimizer import build_optimizer
from unistep.training.power_average import PowerAverages


class TrainingState:
    """Weights, averages, optimizer and counts of a training.

    The optimizer has a group of parameters for each network that is trained in turn. It leaves those without gradients
    as they are, with their moments, so that each network is trained as by an optimizer of its own.

    Args:
        folder: folder of the stage.
        student: `Preconditioned` network that is trained, from the weights it has.
        objective: loss, and the networks beside the student.
        config: length and pace.
        accelerator: devices, processes and precision.
        engine: way in which the processes share the networks; None is whole networks.
    """

    def __init__(
        self,
        folder: Path,
        student: nn.Module,
        objective: Objective,
        config: TrainerConfig,
        accelerator: Accelerator,
        engine: Engine | None = None,
    ) -> None:
        self.folder, self.config, self.objective, self.accelerator = folder, config, objective, accelerator
        self.engine = build_engine("ddp", accelerator) if engine is None else engine
        self.student = self.engine.place(student, objective).train()
        self.step = 0
        self._begin_averages()
        beside = objective.parameters()
        for p in beside:
            p.data = p.data.to(accelerator.device)
        groups: list[dict[str, Any]] = [{"params": list(self.student.parameters())}]
        # The settings of each group, for the learning rates.
        self.group_configs = [config.optimizer]
        if beside:
            groups.append({"params": beside, "weight_decay": 0.0})
            self.group_configs.append(config.optimizer)
        self.critics = dict(objective.critics())
        self.critic_configs = {n: replace(config.optimizer, **c.optimizer) for n, c in self.critics.items()}
        for name, critic in self.critics.items():
            own = self.critic_configs[name]
            parameters = list(critic.network.parameters())
            groups.append({"params": parameters, "betas": own.betas, "eps": own.eps, "weight_decay": own.weight_decay})
            self.group_configs.append(own)
        # Accelerate's wrapper unscales fp16 gradients and skips the steps in which they overflowed.
        optimizer = build_optimizer(config.optimizer, groups, accelerator.device)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.model = self.engine.prepare_model(self.student)
        self.seconds = 0.0
        self.best: Best | None = None
        self.unmeasured = False  # whether the evaluation after this step was left to the resumed run
        self.guard = Guard(lr=config.optimizer.lr)
        self.losses = Losses(self.critics, accelerator.device)

    def _begin_averages(self) -> None:
        """Begins the averages of the weights anew, at the step that it is at."""
        self.ema = EMA(self.student, self.config.ema_decays, self.config.ema_ramp)
        self.power_averages = PowerAverages(self.student, self.config.ema_lengths, self.step)

    @property
    def outline(self) -> nn.Module:
        """The student as it was made, whose weights may have shapes alone."""
        return self.engine.outline(self.student)

    def averaged(self) -> nn.Module:
        """A copy of the student with the first average's weights, in eval mode; all processes come here."""
        return self.engine.copy(self.student, self.ema.averages[self.config.ema_decays[0]])

    def _finite_weights(self) -> bool:
        """Whether all weights, of critics too, and those of the first average are finite."""
        averages = self.ema.averages[self.config.ema_decays[0]].values()
        critics = [p for critic in self.critics.values() for p in critic.network.parameters()]
        finite = [own_part(v).isfinite().all() for v in (*self.student.parameters(), *critics, *averages)]
        return self.engine.all_true(bool(torch.stack(finite).all()))

    def _state(self) -> dict[str, Any]:
        """A copy of all that a checkpoint holds, on the first process; on all where networks are parted."""
        return self.engine.snapshot(self._held())

    def _held(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "power_averages": self.power_averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "best": None if self.best is None else self.best.state_dict(),
            "guard": self.guard.state_dict(),
            "unmeasured": self.unmeasured,
        }

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The tensors of this process for those of a state, which a checkpoint is read to the parts of."""
        own, found = self._held(), state.get("optimizer") or {"state": {}}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            i: dict.fromkeys(values, parameters[i]) for i, values in found["state"].items() if i < len(parameters)
        }
        return own | {"optimizer": {"state": moments}, "objective": self._beside()}

    def _beginning(self) -> dict[str, Any]:
        """Returns copies of what training changes, to begin again with."""
        initial: dict[str, Any] = {
            "student": _copy(self.student.state_dict()),
            "objective": _copy(self.objective.state_dict()),
        }
        if self.accelerator.scaler is not None:
            initial["scaler"] = self.accelerator.scaler.state_dict()
        return initial

    def _begin_again(self, initial: dict[str, Any]) -> None:
        """Takes the place of `_beginning`."""
        self.student.load_state_dict(initial["student"])
        self.objective.load_state_dict(initial["objective"])
        self.step = 0
        self._begin_averages()
        self.optimizer.state.clear()
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(initial["scaler"])
        self.losses.clear()
        self.guard = replace(self.guard, good=None)

    def _load(self, state: dict[str, Any]) -> None:
        """Takes the place of a checkpoint.

        Raises:
            UserError: it is of another network.
        """
        like = self.engine.like
        try:
            self.student.load_state_dict(like(state["student"], self.student.state_dict()))
            own = self.ema.state_dict()
            self.ema.load_state_dict({decay: like(found, own.get(decay, {})) for decay, found in state["ema"].items()})
            if state["optimizer"] is None:  # weights that were exported, and begin with no moments
                self.optimizer.state.clear()
            else:
                self.optimizer.load_state_dict(self._own_moments(state["optimizer"]))
            self.objective.load_state_dict(like(state["objective"], self._beside()))
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds = state["step"], state["seconds"]
            if state.get("power_averages"):
                found, own = state["power_averages"], self.power_averages.state_dict()["averages"]
                averages = {length: like(values, own.get(length, {})) for length, values in found["averages"].items()}
                self.power_averages.load_state_dict(found | {"averages": averages})
            else:  # of weights that were exported: they begin here
                self.power_averages = PowerAverages(self.student, self.config.ema_lengths, self.step)
            self.losses.load_state_dict(state, self.accelerator)
            self.best = Best(**state["best"]) if state.get("best") else None
            self.unmeasured = state.get("unmeasured", False)
            self.guard = Guard(**state.get("guard", {})).with_lr(self.config.optimizer.lr)
        except (KeyError, ValueError, TypeError, RuntimeError):
            raise UserError(
                f"{self.folder} was trained with another network, other ema_decays or ema_lengths; "
                f"choose another `output` or the settings in its config.yaml"
            ) from None

    def _beside(self) -> dict[str, Tensor]:
        """The weights of the objective's networks, those too that it does not save yet."""
        found: dict[str, Tensor] = {}
        for network in (*self.objective.networks().values(), *(critic.network for critic in self.critics.values())):
            found |= network.state_dict()
        return found | self.objective.state_dict()

    def _own_moments(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of an optimizer with this process's parts of the moments, which are as large as their parameter."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            number: self.engine.like(values, {name: parameters[number] for name in values if _is_moment(values[name])})
            for number, values in state["state"].items()
        }
        return {**state, "state": moments}


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, in main memory where they are whole."""
    return {
        name: value.detach().to("cpu", copy=True) if own_part(value) is value else value.detach().clone()
        for name, value in state.items()
    }
