"""unistep: train, distill, sample and edit with consistency models, which make an image in one network evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unistep.editing.methods.measurement import edit
    from unistep.editing.run import EditResult
    from unistep.pipelines.consistency_model import ConsistencyModelPipeline
    from unistep.pipelines.scheduler import CMStochasticIterativeScheduler

__all__ = ["CMStochasticIterativeScheduler", "ConsistencyModelPipeline", "EditResult", "edit"]

# Imported when first asked for: `import unistep` alone costs nothing.
_PLACES = {
    "CMStochasticIterativeScheduler": "unistep.pipelines.scheduler",
    "ConsistencyModelPipeline": "unistep.pipelines.consistency_model",
    "EditResult": "unistep.editing.run",
    "edit": "unistep.editing.methods.measurement",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'unistep' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
