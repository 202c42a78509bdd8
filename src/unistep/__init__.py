"""unistep: train, distill, sample and edit with consistency models, which make an image in one network evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unistep.pipelines.consistency_model import ConsistencyModelPipeline
    from unistep.pipelines.edit_run import EditResult
    from unistep.pipelines.editing import edit
    from unistep.pipelines.scheduler import CMStochasticIterativeScheduler

__all__ = ["CMStochasticIterativeScheduler", "ConsistencyModelPipeline", "EditResult", "edit"]

# Imported when first asked for: `import unistep` alone costs nothing.
_PLACES = {
    "CMStochasticIterativeScheduler": "unistep.pipelines.scheduler",
    "ConsistencyModelPipeline": "unistep.pipelines.consistency_model",
    "EditResult": "unistep.pipelines.edit_run",
    "edit": "unistep.pipelines.editing",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'unistep' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
