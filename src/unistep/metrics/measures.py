"""The measures by their names: what each needs, what it is called, and which way is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.protocol import FeatureInfo, Kind
from unistep.text import nearest

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Measure:
    """One of the things that can be asked for.

    Args:
        text: what it is.
        kind: of the features that it is measured on.
        images: whether it needs the reference's features one by one, which statistics do not have.
        reference: whether it needs a reference at all.
        inception: its name where the features are Inception's, in the literature.
    """

    text: str
    kind: Kind = "pool"
    images: bool = True
    reference: bool = True
    inception: str | None = None


MEASURES: dict[str, Measure] = {
    "fd": Measure("Frechet distance", images=False, inception="fid"),
    "sfd": Measure("Frechet distance of spatial features", "spatial", images=False, inception="sfid"),
    "kd": Measure("kernel distance", inception="kid"),
    "is": Measure("inception score", "probabilities", images=False, reference=False),
    "pr": Measure("improved precision and recall, k = 3"),
    "dc": Measure("density and coverage, k = 5"),
    "nn": Measure("nearest reference images: are samples copies?"),
}
_ALIASES = {measure.inception: name for name, measure in MEASURES.items() if measure.inception}


@dataclass(frozen=True)
class Result:
    """A measured number.

    Args:
        name: its key in metrics.json.
        title: for people; says what it is comparable with.
        estimate: the number and its error.
        better: which way.
        notes: more numbers that belong to it.
    """

    name: str
    title: str
    estimate: Estimate
    better: Better
    notes: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As metrics.json has it."""
        low, high = self.estimate.interval
        return {
            "title": self.title,
            "value": self.estimate.value,
            "standard_error": self.estimate.standard_error,
            "interval_95": [low, high],
            "better": self.better,
            **self.notes,
        }


def check_measures(names: Sequence[str], info: FeatureInfo) -> list[str]:
    """The measures that the names mean, each once; fid, sfid and kid are those of Inception's features.

    Raises:
        UserError: an unknown name, a name that only Inception's numbers have, features that the network does not give.
    """
    chosen: list[str] = []
    for given in names:
        name = _ALIASES.get(given, given)
        if name not in MEASURES:
            near = nearest(given, [*MEASURES, *_ALIASES])
            hint = f"; did you mean {near}?" if near else ""
            raise UserError(f"unknown measure {given!r}{hint} (known: {', '.join(MEASURES)})")
        if given in _ALIASES and info.name != "inception":
            raise UserError(
                f"{given} is measured on Inception's features, not on {info.name}'s: say {name} for theirs, "
                "or give --features inception"
            )
        if MEASURES[name].kind not in info.dims:
            raise UserError(f"{name} needs {MEASURES[name].kind} features, which {info.name} has not; leave it out")
        if name not in chosen:
            chosen.append(name)
    if not chosen:
        raise UserError(f"no measure is named; give some of {', '.join(MEASURES)}")
    return chosen


def title(name: str, info: FeatureInfo) -> str:
    """What a measure is called with the features of `info`: FID for Inception's only, FD-MNIST, KD-DINOv2.

    A resize that is not the usual one of the network is part of the name.
    """
    short = {"fd": "FD", "sfd": "sFD", "kd": "KD", "is": "IS"}.get(name, name)
    text, usual = f"{short}-{info.label}", ("clean", "none")
    if info.name == "inception":
        text, usual = {"fd": "FID", "sfd": "sFID", "kd": "KID"}.get(name, short), ("legacy-tensorflow",)
    return text if info.resize in usual else f"{text} ({info.resize} resize)"
