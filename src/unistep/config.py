"""The config of a training run: it composes the frozen dataclass that each component declares beside itself.

The same names are the constructor's signature, the flags of `unistep train` and the keys of a recipe's YAML.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unistep.core.parameterization import NoiseEmbedding
from unistep.data.config import DataConfig
from unistep.errors import UserError
from unistep.formats.published.lpips import LPIPSConfig
from unistep.generation.plan import spaced_timesteps
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song_config import SongUNetConfig
from unistep.objectives.consistency import ConsistencyConfig
from unistep.objectives.continuous import ContinuousConfig
from unistep.objectives.denoising import DenoisingConfig
from unistep.objectives.methods import MethodConfig
from unistep.objectives.progressive import ProgressiveConfig
from unistep.samplers.consistency import sigmas_from_indices
from unistep.text import nearest
from unistep.training.evaluation import EvaluationConfig
from unistep.training.trainer import Precision, TrainerConfig

RECIPES = Path(__file__).parent / "recipes"
_METHOD_KEYS = ("objective", "continuous", "progressive")


@dataclass(frozen=True)
class TeacherConfig(TrainerConfig):
    """The diffusion model, trained first.

    Args:
        objective: EDM denoising.
    """

    objective: DenoisingConfig = field(default_factory=DenoisingConfig)


@dataclass(frozen=True)
class StudentConfig(TrainerConfig):
    """The consistency model, by one of three kinds of method.

    Args:
        objective: the five slots of the consistency objective: CD, CT, iCT, ECT, Stable CT; the default.
        continuous: the continuous-time objective: sCD, sCT.
        progressive: progressive distillation.
        from_teacher: start from the teacher's averaged weights; else from random ones.
        dropout: of the student's network; null is what the network has.
        timesteps: indices of the two-step schedule that the saved model uses by default.
        num_train_timesteps: N of the grid they refer to.
    """

    objective: ConsistencyConfig | None = None
    continuous: ContinuousConfig | None = None
    progressive: ProgressiveConfig | None = None
    from_teacher: bool = True
    dropout: float | None = None
    timesteps: tuple[int, ...] | None = None
    num_train_timesteps: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _METHOD_KEYS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        if self.progressive is not None:
            self.progressive.phases(self.steps)  # refuses too few steps
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is outside [0, 1)")
        if self.num_train_timesteps < 3:
            raise ValueError(f"num_train_timesteps {self.num_train_timesteps} must be at least 3, for a step between")
        if self.timesteps is not None:
            sigmas_from_indices(self.timesteps, self.num_train_timesteps)  # refuses what is no schedule

    @property
    def method(self) -> MethodConfig:
        """The one config that is given, or else the default one."""
        return self.objective or self.continuous or self.progressive or ConsistencyConfig()

    @property
    def method_key(self) -> str:
        """The key that it stands under."""
        return next((name for name in _METHOD_KEYS if getattr(self, name) is not None), _METHOD_KEYS[0])


@dataclass(frozen=True)
class RunConfig:
    """A training run: data, a network, and one or two stages that train it.

    Args:
        description: one line about the recipe.
        seed: of everything random.
        precision: "auto" takes bf16 where the machine multiplies it fast, else fp32.
        sigma_data: standard deviation that the scalings assume of the data.
        use_labels: train a class-conditional model, where the data has classes.
        data: where images come from.
        noise_embedding: how networks are told the noise level: "adm" 250 ln(sigma), "edm" ln(sigma)/4; null is "adm"
            for `network` and "edm" for `song`. A student that starts from its teacher, or has its network, is told as
            that was.
        network: an ADM U-Net; image size, channels and classes are taken from the data.
        song: a DDPM++ or NCSN++ U-Net in its place. Where neither is given, the student's network is the teacher's.
        teacher: the diffusion stage; null where there is none, or where `teacher_model` is given.
        teacher_model: what to use as the teacher, instead of training one: a model folder, a run, an OpenAI .pt, an
            EDM .pkl, or owner/name on the hub.
        lpips: files of the distance "lpips".
        student: the consistency stage; null trains the teacher only.
        evaluate_every: steps between measurements of the student, or of the teacher where it is the only stage; 0 never
            measures.
        evaluation: how it is measured.
    """

    description: str = ""
    seed: int = 0
    precision: Precision = "auto"
    sigma_data: float = 0.5
    use_labels: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    noise_embedding: NoiseEmbedding | None = None
    network: PatchedUNetConfig | None = None
    song: SongUNetConfig | None = None
    teacher: TeacherConfig | None = None
    teacher_model: str | None = None
    lpips: LPIPSConfig = field(default_factory=LPIPSConfig)
    student: StudentConfig | None = None
    evaluate_every: int = 0
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.teacher is None and self.student is None:
            raise ValueError("nothing to train: give a teacher or a student stage")
        has_teacher = self.teacher is not None or self.teacher_model is not None
        if self.teacher is not None and self.teacher_model is not None:
            raise ValueError("teacher and teacher_model exclude each other; set one of them to null")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must lie between 0 and {2**63 - 1}")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data {self.sigma_data} must be positive")
        if self.teacher is not None and self.teacher.objective.augment and self.data.flip:
            raise ValueError(
                "data.flip mirrors images untold, and teacher.objective.augment tells it; set data.flip to false"
            )
        if self.network is not None and self.song is not None:
            raise ValueError("network and song exclude each other; set one of them to null")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every {self.evaluate_every} must be at least 1, or 0 for never")
        if self.student is not None:
            self._check_student(self.student, has_teacher)
            if self.student.progressive is None and self.evaluation.steps is not None:
                spaced_timesteps(self.evaluation.steps, self.student.num_train_timesteps)  # refuses too many

    def _check_student(self, student: StudentConfig, has_teacher: bool) -> None:
        method, key = student.method, f"student.{student.method_key}"
        if self.teacher is not None and method.guidance != 1 and not self.teacher.objective.label_dropout:
            raise ValueError(
                f"{key}.guidance {method.guidance} needs a teacher with a null class; "
                f"set teacher.objective.label_dropout above 0, as 0.1"
            )
        if has_teacher:
            return
        if method.guidance != 1:
            raise ValueError(f"{key}.guidance {method.guidance} needs a teacher")
        if method.needs_teacher:
            slot = next((f".{n} {getattr(method, n)}" for n in ("step", "velocity") if hasattr(method, n)), "")
            raise ValueError(f"{key}{slot} needs a teacher")
        if student.from_teacher:
            raise ValueError("student.from_teacher needs a teacher; set it to false to start from random weights")

    @property
    def evaluated(self) -> str | None:
        """The stage that is measured in training; None where none is."""
        return ("teacher" if self.student is None else "student") if self.evaluate_every else None

    @property
    def architecture(self) -> PatchedUNetConfig | SongUNetConfig | None:
        """The network that is given; None where the student's is to be the teacher's."""
        if self.network is None and self.song is None and self.teacher_model is None:
            return PatchedUNetConfig()
        return self.network or self.song

    @property
    def embedding(self) -> NoiseEmbedding:
        """How networks that begin here are told the noise level."""
        return self.noise_embedding or ("adm" if self.song is None else "edm")


def recipe_names() -> list[str]:
    """The recipes that ship, sorted."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The YAML file of a recipe's name, or of a path.

    Raises:
        UserError: there is none; the nearest name is named.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"recipe file {name} does not exist")
        return Path(name)
    path = RECIPES / f"{name}.yaml"
    if not path.is_file() and Path(name).is_file():
        raise UserError(f"{name} is a file, and no recipe by its name; a recipe ends in .yaml")
    if not path.is_file():
        raise UserError(f"unknown recipe {name!r}{did_you_mean(name, recipe_names())}; `unistep recipes` lists them")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as nested dictionaries, its keys checked against `RunConfig`.

    Raises:
        UserError: not YAML, not a mapping, or what `check_keys` refuses.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]
        raise UserError(f"{path} is not readable YAML ({reason})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines")
    check_keys(values, str(path))
    return values


def check_keys(values: dict[Any, Any], where: str) -> None:
    """Refuses keys that `RunConfig` does not have, sections without keys, and null where there must be a value.

    Raises:
        UserError: names the key, and the nearest valid one where it is unknown.
    """
    hints = dict(_key_hints())
    for key, value in _flatten(values):
        if key not in hints:
            raise UserError(f"{where}: unknown key {key}{did_you_mean(key, hints)}")
        if value is None:
            if type(None) not in typing.get_args(hints[key]):
                raise UserError(f"{where}: {key} has no value; give it one, or leave the key out")
        elif (inner := _dataclass_in(hints[key])) is not None and not isinstance(value, dict):
            example = dataclasses.fields(inner)[0].name
            raise UserError(f"{where}: {key} is {value!r}; it must hold keys, as {key}.{example}")


def config_keys() -> Iterator[str]:
    """All dotted keys of a config, the inner ones included."""
    return (key for key, _ in _key_hints())


def config_sections() -> Iterator[tuple[str, type]]:
    """The keys that hold keys of their own, with the dataclass of each."""
    for key, hint in _key_hints():
        if (inner := _dataclass_in(hint)) is not None:
            yield key, inner


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def dump(config: RunConfig) -> str:
    """The resolved config as YAML; `unistep train` reads it back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def completed(values: dict[str, Any], config_type: Any = RunConfig) -> dict[str, Any]:
    """What `dump` would have written of `values`, had there been all keys of now: missing ones have their defaults."""
    hints, values = typing.get_type_hints(config_type), dict(values)
    for f in dataclasses.fields(config_type):
        inner = _dataclass_in(hints[f.name])
        if f.name not in values:
            default: Any = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            values[f.name] = _plain(default if inner is None or default is None else dataclasses.asdict(default))
        elif inner is not None and isinstance(values[f.name], dict):
            values[f.name] = completed(values[f.name], inner)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _flatten(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")


def _key_hints(config_type: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(config_type)
    for f in dataclasses.fields(config_type):
        yield prefix + f.name, hints[f.name]
        if (inner := _dataclass_in(hints[f.name])) is not None:
            yield from _key_hints(inner, f"{prefix}{f.name}.")


def _dataclass_in(hint: Any) -> type | None:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)
