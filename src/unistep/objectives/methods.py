"""Training methods by name, with the numbers of their papers.

The discrete-time ones are rows of the consistency objective, whose five slots they fill:

method     pairs      step         target         distance       weight
CD         uniform    heun         EMA, fixed     l2 (or LPIPS)  1
CT         uniform    same noise   EMA, mu(k)     l2 (or LPIPS)  1
iCT        lognormal  same noise   stop-gradient  pseudo-Huber   1/(t-r)
ECT        mapping    same noise   stop-gradient  pseudo-Huber   1/(t-r)
Stable CT  mapping    mean noise   stop-gradient  pseudo-Huber   1/(t-r), smooth

EDM denoising, progressive distillation (PD), truncated consistency (TCM), consistency mid-training (CMT) and the
continuous-time sCD and sCT have objectives of their own, and so have the flow maps MeanFlow, iMF, SoFlow and FACM, and
distribution matching, DMD2.
A new method is one more row, and a file in this folder where its objective is new.
"""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from unistep.objectives.protocol import MethodConfig

_CONSISTENCY = "unistep.objectives.consistency:ConsistencyConfig"
_CONTINUOUS = "unistep.objectives.continuous:ContinuousConfig"


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Args:
        name: name in recipes.
        title: name in words, as model cards have it.
        place: `module:class` of the config; imported where it is first needed, as it imports torch.
        published: numbers of the paper that are not the config's defaults.
        paper: arXiv number.
    """

    name: str
    title: str
    place: str
    published: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""

    @property
    def config_class(self) -> "type[MethodConfig]":
        """The class of the method's config."""
        return pkgutil.resolve_name(self.place)

    def config(self, **changes: Any) -> "MethodConfig":
        """The published numbers, with changes.

        >>> METHODS["ect"].config(guidance=1.5).huber_c
        0.0
        """
        return self.config_class(**{**self.published, **changes})


_ROWS = (
    Method("edm", "EDM denoising", "unistep.objectives.denoising:DenoisingConfig", paper="2206.00364"),
    Method(
        "pd",
        "progressive distillation (PD)",
        "unistep.objectives.progressive:ProgressiveConfig",
        paper="2202.00512",
    ),
    Method(
        "cd",
        "consistency distillation (CD)",
        _CONSISTENCY,
        {
            "pairs": "uniform",
            "step": "heun",
            "target": "ema",
            "distance": "l2",
            "scales": "fixed",
            "start_scales": 40,
            "end_scales": 40,
        },
        "2303.01469",
    ),
    Method(
        "ct",
        "consistency training (CT)",
        _CONSISTENCY,
        {
            "pairs": "uniform",
            "step": "same-noise",
            "target": "ema",
            "ema_decay": 0.95,
            "ema_adaptive": True,
            "distance": "l2",
            "scales": "progressive",
            "start_scales": 2,
            "end_scales": 200,
        },
        "2303.01469",
    ),
    Method(
        "ict",
        "improved consistency training (iCT)",
        _CONSISTENCY,
        {
            "pairs": "lognormal",
            "step": "same-noise",
            "target": "stop-gradient",
            "distance": "pseudo-huber",
            "weighting": "1/(t-r)",
            "scales": "doubling",
            "start_scales": 10,
            "end_scales": 1280,
        },
        "2310.14189",
    ),
    Method(
        "ect",
        "easy consistency tuning (ECT)",
        _CONSISTENCY,
        {
            "pairs": "mapping",
            "step": "same-noise",
            "target": "stop-gradient",
            "distance": "pseudo-huber",
            "huber_c": 0.0,
            "weighting": "1/(t-r)",
            "sigma_min": 0.0,
        },
        "2406.14548",
    ),
    Method(
        "stable-ct",
        "stable consistency tuning (Stable CT)",
        _CONSISTENCY,
        {
            "pairs": "mapping",
            "step": "mean-noise",
            "tightening": "smooth",
            "target": "stop-gradient",
            "distance": "pseudo-huber",
            "huber_c": 0.0,
            "weighting": "1/(t-r)",
            "sigma_min": 0.0,
        },
        "2410.18958",
    ),
    Method("tcm", "truncated consistency (TCM)", "unistep.objectives.truncated:TruncatedConfig", paper="2410.14895"),
    Method(
        "cmt", "consistency mid-training (CMT)", "unistep.objectives.midtraining:MidTrainingConfig", paper="2509.24526"
    ),
    Method("scd", "continuous-time consistency distillation (sCD)", _CONTINUOUS, {"velocity": "teacher"}, "2410.11081"),
    Method("sct", "continuous-time consistency training (sCT)", _CONTINUOUS, {"velocity": "data"}, "2410.11081"),
    Method("meanflow", "MeanFlow", "unistep.objectives.meanflow:MeanFlowConfig", paper="2505.13447"),
    Method(
        "imf",
        "improved MeanFlow (iMF)",
        "unistep.objectives.improved_meanflow:ImprovedMeanFlowConfig",
        paper="2512.02012",
    ),
    Method("soflow", "SoFlow", "unistep.objectives.soflow:SoFlowConfig", paper="2512.15657"),
    Method("facm", "flow-anchored consistency (FACM)", "unistep.objectives.facm:FACMConfig", paper="2507.03738"),
    Method("dmd2", "distribution matching (DMD2)", "unistep.objectives.dmd2:DMD2Config", paper="2405.14867"),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name."""

# A Literal of the names at run time, for help texts and checks; to a type checker a string.
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[*METHODS]


def method_name(config: "MethodConfig") -> str:
    """The method that a config is of, in words, with its guidance; its slots where no row has them.

    >>> method_name(METHODS["ect"].config(guidance=1.5))
    'easy consistency tuning (ECT), guidance 1.5'
    """
    slots = _slots(config)
    words = _title(config, slots)
    if words is None and slots.get("distance") == "lpips":
        words = _title(config, slots | {"distance": "l2"})
        words = words and f"{words}, LPIPS"
    words = words or "consistency objective: " + ", ".join(map(str, slots.values()))
    return words if config.guidance == 1 else f"{words}, guidance {config.guidance:g}"


def _title(config: "MethodConfig", slots: dict[str, Any]) -> str | None:
    rows = (row for row in METHODS.values() if row.config_class is type(config) and _slots(row.config()) == slots)
    return next((row.title for row in rows), None)


def _slots(config: "MethodConfig") -> dict[str, Any]:
    return {slot: getattr(config, slot) for slot in config.slots}
