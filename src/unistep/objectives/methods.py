"""The rows: each published method as values of the five slots, with the hyperparameters of its paper.

method  pairs      step         target         distance       weight
CD      uniform    heun         EMA, fixed     l2 (or LPIPS)  1
CT      uniform    same noise   EMA, mu(k)     l2 (or LPIPS)  1
iCT     lognormal  same noise   stop-gradient  pseudo-Huber   1/(t-r)
ECT     mapping    same noise   stop-gradient  pseudo-Huber   1/(t-r)
"""

from collections.abc import Mapping
from types import MappingProxyType

from unistep.objectives.consistency import ConsistencyConfig

METHODS: Mapping[str, ConsistencyConfig] = MappingProxyType(
    {
        "cd": ConsistencyConfig(
            pairs="uniform", step="heun", target="ema", distance="l2", scales="fixed", start_scales=40, end_scales=40
        ),
        "ct": ConsistencyConfig(
            pairs="uniform",
            step="same-noise",
            target="ema",
            ema_decay=0.95,
            ema_adaptive=True,
            distance="l2",
            scales="progressive",
            start_scales=2,
            end_scales=200,
        ),
        "ict": ConsistencyConfig(
            pairs="lognormal",
            step="same-noise",
            target="stop-gradient",
            distance="pseudo-huber",
            weighting="1/(t-r)",
            scales="doubling",
            start_scales=10,
            end_scales=1280,
        ),
        "ect": ConsistencyConfig(
            pairs="mapping",
            step="same-noise",
            target="stop-gradient",
            distance="pseudo-huber",
            huber_c=0.0,
            weighting="1/(t-r)",
            sigma_min=0.0,
        ),
    }
)

_NAMES = {
    "cd": "consistency distillation (CD)",
    "ct": "consistency training (CT)",
    "ict": "improved consistency training (iCT)",
    "ect": "easy consistency tuning (ECT)",
}
_SLOTS = ("pairs", "step", "target", "distance", "weighting", "scales")


def method_name(config: ConsistencyConfig) -> str:
    """The method whose slots `config` has, in words; the slots themselves where no row has them. Guidance is told."""
    slots = {slot: getattr(config, slot) for slot in _SLOTS}
    rows = [name for name, row in METHODS.items() if all(getattr(row, slot) == v for slot, v in slots.items())]
    words = _NAMES.get(rows[0], rows[0]) if rows else "consistency objective: " + ", ".join(map(str, slots.values()))
    return words if config.guidance == 1 else f"{words}, guidance {config.guidance:g}"
