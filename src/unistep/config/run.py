"""The config of a training run: it composes the frozen dataclasses that data, networks, methods and trainer declare.

Nothing here imports torch before a config is built.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from unistep.checks import MAX_SEED, check_range
from unistep.data.config import DataConfig
from unistep.errors import UserError
from unistep.metrics.config import EvaluationConfig
from unistep.networks.table import NETWORKS, row_of
from unistep.objectives.methods import METHODS, MethodName
from unistep.training.config import Compile, EngineName, Precision, TrackerName, TrainerConfig

NoiseEmbedding = Literal["adm", "edm"]


@dataclass(frozen=True)
class LPIPSConfig:
    """Files of the distance "lpips".

    Args:
        vgg: path of a VGG16 (`vgg16-397923af.pth`); null downloads it once, 528 MiB.
        heads: path of LPIPS' weights for VGG16, version 0.1 (`vgg.pth`); null downloads it once.
    """

    vgg: str | None = None
    heads: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageConfig(TrainerConfig):
    """A stage of a run: one model, trained by one method.

    Args:
        name: name of the stage, of its flags and of its folder in the run.
        method: training method; its published numbers are the defaults of `objective`.
        objective: numbers of the method that differ from the published ones.
        init: model whose weights the stage starts from: an earlier stage, a model folder, a run, a file or owner/name
            on the hub; null starts from random weights.
        teacher: diffusion model that the method follows or is guided by, named as in `init`; null is that of `init`
            where the method needs one, else none.
        published_at: address of the file that `init` or `teacher` names, for the message where it is missing.
        dropout: dropout probability of the network; null is the network's own.
        timesteps: two-step schedule that the saved model samples with, as indices of the grid, from 0 on; null leaves
            it open.
        schedules: schedules of other numbers of steps that the saved model samples with, one each, as indices of the
            grid, from 0 on; steps without one are spaced evenly over the grid.
        num_train_timesteps: number N of noise levels in the grid of the saved model.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    name: str
    method: MethodName
    objective: Any = None
    init: str | None = None
    teacher: str | None = None
    published_at: str = ""
    dropout: float | None = None
    timesteps: tuple[int, ...] | None = None
    schedules: tuple[tuple[int, ...], ...] = ()
    num_train_timesteps: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective is None:
            object.__setattr__(self, "objective", METHODS[self.method].config())
        if not isinstance(self.objective, METHODS[self.method].config_class):
            raise UserError(f"{type(self.objective).__name__} is no config of `method` {self.method}")
        self.objective.check_steps(self.steps)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"{self.dropout} is outside [0, 1)", field="dropout")
        check_range("num_train_timesteps", self.num_train_timesteps, 3, math.inf)  # a step between the ends
        self._check_schedules()

    def _check_schedules(self) -> None:
        """Refuses what is no schedule, and a second one of the same number of steps."""
        from unistep.samplers.consistency import sigmas_from_indices

        counts = set()
        if self.timesteps is not None:
            sigmas_from_indices(self.timesteps, self.num_train_timesteps)
            counts.add(len(self.timesteps))
        for own in self.schedules:
            try:
                sigmas_from_indices(own, self.num_train_timesteps)
            except UserError as error:
                raise UserError(error.problem, error.remedy, field="schedules") from None
            if len(own) in counts:
                raise UserError(f"there are two of {len(own)} steps", "keep one", field="schedules")
            counts.add(len(own))

    @property
    def taught_by(self) -> str | None:
        """Name of the stage's teacher; None where it has none."""
        return self.teacher or (self.init if self.objective.needs_teacher else None)

    @property
    def kind(self) -> str:
        """Kind of the trained model: "diffusion" or "consistency"."""
        return self.objective.model()["kind"]


@dataclass(frozen=True)
class RunConfig:
    """A training run: data, a network, and the stages that train it, one after the other.

    Args:
        description: one line about the recipe.
        seed: seed of the initial weights, the order of the images, noise and dropout.
        precision: arithmetic of the forward and backward passes; "auto" takes bf16 where the machine multiplies it
            fast, else fp32.
        compile: part that `torch.compile` makes faster: "none", the "network", or network and, on a GPU, the whole step
            as a CUDA "graph"; it takes minutes before the first step.
        engine: way in which several processes share the networks: "ddp", each has them whole, or "fsdp", each has a
            part of all weights, averages and moments; a single process has them whole.
        activation_checkpointing: whether the backward pass computes the activations of the network's blocks again,
            which takes less memory and about one forward pass more; the training stays the same.
        sigma_data: standard deviation that the scalings assume of the data.
        use_labels: whether a class-conditional model is trained, where the data has classes.
        data: source and preparation of the images.
        network: architecture of all stages, whose image size, channels and classes are those of the data; null is
            that of the model which the first stage begins from.
        noise_embedding: input of the network for a noise level: "adm" 250 ln(sigma), "edm" ln(sigma)/4; null is the
            network's own. A stage that begins from a model has that model's.
        stages: the stages by name, in their order.
        lpips: files of the distance "lpips".
        trackers: services that follow the run beside TensorBoard, each a package of its own: "wandb" (Weights &
            Biases), "mlflow", "trackio".
        evaluate_every: number of steps between two evaluations of the last stage's model; 0 never evaluates.
        evaluation: settings of the evaluation during training.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    description: str = ""
    seed: int = 0
    precision: Precision = "auto"
    compile: Compile = "none"
    engine: EngineName = "ddp"
    activation_checkpointing: bool = False
    sigma_data: float = 0.5
    use_labels: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    network: Any = None
    noise_embedding: NoiseEmbedding | None = None
    stages: tuple[StageConfig, ...] = ()
    lpips: LPIPSConfig = field(default_factory=LPIPSConfig)
    trackers: tuple[TrackerName, ...] = ()
    evaluate_every: int = 0
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("nothing to train: `stages` is empty")
        check_range("seed", self.seed, 0, MAX_SEED)
        if not 0 < self.sigma_data < math.inf:
            raise UserError(f"{self.sigma_data} must be positive", field="sigma_data")
        check_range("evaluate_every", self.evaluate_every, 0, math.inf)
        if len(set(self.trackers)) < len(self.trackers):
            raise UserError("names a service twice", "keep one", field="trackers")
        names = [stage.name for stage in self.stages]
        for i, stage in enumerate(self.stages):
            check_stage_name(stage.name)
            if stage.name in names[:i]:
                raise UserError(f"`stages`: there are two of the name {stage.name}; rename one")
            self._check_models(stage, names[:i], names[i:])
            if stage.objective.network()["augment_dim"] and self.data.flip:
                raise UserError(
                    f"`data.flip` mirrors images without an input for it, which `{stage.name}.objective.augment` has; "
                    "set `data.flip` to false"
                )
        if self.evaluation.steps is not None and self.stages[-1].kind == "consistency":
            from unistep.generation.plan import spaced_timesteps

            spaced_timesteps(self.evaluation.steps, self.stages[-1].num_train_timesteps)  # refuses too many

    def _check_models(self, stage: StageConfig, before: Sequence[str], later: Sequence[str]) -> None:
        """Refuses a stage whose models do not exist by then, or are not what its method needs."""
        for role in ("init", "teacher"):
            if getattr(stage, role) in later:
                raise UserError(f"`{stage.name}.{role}` {getattr(stage, role)} is not an earlier stage")
        key, guidance = f"{stage.name}.objective.guidance", stage.objective.guidance
        taught_by = self.stage(stage.taught_by) if stage.taught_by in before else None
        if stage.taught_by is None and stage.objective.needs_teacher:
            of = f"`{key}` {guidance:g}" if guidance != 1 else f"`{stage.name}.method` {stage.method}"
            raise UserError(f"{of} needs a teacher; set `{stage.name}.teacher` to a diffusion model")
        if taught_by is not None and taught_by.kind != "diffusion":
            raise UserError(
                f"`{stage.name}.teacher` {taught_by.name} trains a {taught_by.kind} model; name a diffusion model"
            )
        if taught_by is not None and guidance != 1 and not taught_by.objective.null_class:
            raise UserError(
                f"`{key}` {guidance:g} needs a teacher with a null class; "
                f"set `{taught_by.name}.objective.label_dropout` above 0, as 0.1"
            )

    def stage(self, name: str | None = None) -> StageConfig:
        """The stage of a name; the last one where there is no name.

        Raises:
            UserError: there is none of that name.
        """
        if name is None:
            return self.stages[-1]
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"there is no stage {name}; the run has {', '.join(s.name for s in self.stages)}")

    def seed_of(self, stage: StageConfig) -> int:
        """Seed of a stage: `seed` + its number, where the diffusion model that others begin from is number 0.

        So a student draws the same numbers whether its teacher is trained first, is given, or is missing.
        """
        first = self.stages[0]
        base = first.kind == "diffusion" and first.taught_by is None
        return self.seed + self.stages.index(stage) + (not base)

    @property
    def evaluated(self) -> StageConfig | None:
        """The stage whose model is measured while it trains; None where none is."""
        return self.stages[-1] if self.evaluate_every else None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are opened, in the order in which the stages name them."""
        own = {stage.name for stage in self.stages}
        named = [name for stage in self.stages for name in (stage.init, stage.taught_by)]
        return tuple(dict.fromkeys(name for name in named if name is not None and name not in own))

    @property
    def embedding(self) -> NoiseEmbedding:
        """Input for a noise level of networks that begin here."""
        row = row_of(self.network) or next(iter(NETWORKS.values()))
        return self.noise_embedding or row.noise_embedding


def check_stage_name(name: str) -> None:
    """Refuses what cannot be the name of a folder and of flags.

    Raises:
        UserError: it is none, or the name of a key of the run.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in {f.name for f in fields(RunConfig)}:
        raise UserError(
            f"`stages`: {name!r} cannot be the name of a stage; give small letters, and no key of a recipe, as student"
        )
