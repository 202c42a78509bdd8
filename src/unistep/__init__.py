"""unistep: train, distill, sample and edit with consistency models, which make an image in one network evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unistep.core.denoiser import Denoiser
    from unistep.data.open import open_dataset
    from unistep.errors import UserError
    from unistep.pipelines.consistency_model import ConsistencyModelPipeline
    from unistep.pipelines.scheduler import CMStochasticIterativeScheduler
    from unistep.serving.serve import serve
    from unistep.workflows.cache import cache
    from unistep.workflows.convert import convert
    from unistep.workflows.edit import edit
    from unistep.workflows.ema import ema
    from unistep.workflows.evaluate import evaluate
    from unistep.workflows.export import export
    from unistep.workflows.export_weights import export_weights
    from unistep.workflows.fetch import fetch_dataset
    from unistep.workflows.inspect import inspect
    from unistep.workflows.models import load
    from unistep.workflows.pack import pack_dataset
    from unistep.workflows.plan import plan
    from unistep.workflows.quantize import quantize
    from unistep.workflows.report import report
    from unistep.workflows.runs_list import runs
    from unistep.workflows.sample import sample
    from unistep.workflows.search import search
    from unistep.workflows.train import train

    __version__ = ""

__all__ = [
    "CMStochasticIterativeScheduler",
    "ConsistencyModelPipeline",
    "Denoiser",
    "UserError",
    "__version__",
    "cache",
    "convert",
    "edit",
    "ema",
    "evaluate",
    "export",
    "export_weights",
    "fetch_dataset",
    "inspect",
    "load",
    "open_dataset",
    "pack_dataset",
    "plan",
    "quantize",
    "report",
    "runs",
    "sample",
    "search",
    "serve",
    "train",
]

# Imported when first asked for: `import unistep` alone costs nothing.
_MODULES = {
    "CMStochasticIterativeScheduler": "unistep.pipelines.scheduler",
    "ConsistencyModelPipeline": "unistep.pipelines.consistency_model",
    "Denoiser": "unistep.core.denoiser",
    "UserError": "unistep.errors",
    "cache": "unistep.workflows.cache",
    "convert": "unistep.workflows.convert",
    "edit": "unistep.workflows.edit",
    "ema": "unistep.workflows.ema",
    "evaluate": "unistep.workflows.evaluate",
    "export": "unistep.workflows.export",
    "export_weights": "unistep.workflows.export_weights",
    "fetch_dataset": "unistep.workflows.fetch",
    "inspect": "unistep.workflows.inspect",
    "load": "unistep.workflows.models",
    "open_dataset": "unistep.data.open",
    "pack_dataset": "unistep.workflows.pack",
    "plan": "unistep.workflows.plan",
    "quantize": "unistep.workflows.quantize",
    "report": "unistep.workflows.report",
    "runs": "unistep.workflows.runs_list",
    "sample": "unistep.workflows.sample",
    "search": "unistep.workflows.search",
    "serve": "unistep.serving.serve",
    "train": "unistep.workflows.train",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        return importlib.import_module("unistep.text").version_of()
    if name not in _MODULES:
        raise AttributeError(f"module 'unistep' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
