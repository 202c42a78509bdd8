"""A profile of the work in a block: a trace for Chrome's `chrome://tracing` or Perfetto, and tables of its times."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from unistep.errors import UserError
from unistep.files import write_error

_MODULE = "module "
_ROWS, _STEPS = 20, 10


def check_trace(path: str | os.PathLike[str]) -> Path:
    """The file that a trace is written to.

    Args:
        path: file that ends in .json or .json.gz.

    Raises:
        UserError: the name has another ending, or there is no folder of its own.
    """
    place = Path(path).expanduser()
    if not place.name.endswith((".json", ".json.gz")):
        raise UserError(f"{place}: a trace ends in .json or .json.gz", field="profile")
    if not place.parent.is_dir():
        raise UserError(f"{place}: {place.parent} is no folder; make it first", field="profile")
    return place


@contextmanager
def profiled(path: Path | None, say: Callable[[str], object], *, steps: bool = False) -> Iterator[None]:
    """Profiles a block, if a path is given.

    Args:
        path: file that the trace is written to; None profiles nothing.
        say: function that is given the tables, as text.
        steps: whether the block is a training, of which steps 3 to 12 are profiled and nothing else.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    hooks: list[Any] = []

    def done(found: Any) -> None:
        for hook in hooks:
            hook.remove()
        hooks.clear()
        try:
            path.touch()  # whose error says more than the profiler's
            found.export_chrome_trace(str(path))
        except OSError as error:
            raise write_error(path, error, "give another file") from None
        say(tables(found.key_averages()))

    plan = schedule(wait=1, warmup=1, active=_STEPS, repeat=1) if steps else None
    with profile(activities=activities, schedule=plan, on_trace_ready=done) as running:
        hooks += _named_modules()
        if steps:
            hooks.append(register_optimizer_step_post_hook(lambda *_: running.step()))
        try:
            yield
        finally:
            written = not hooks
            for hook in hooks:
                hook.remove()
    if steps and not written and not path.exists():
        say("no step was profiled: the training took less than three")


def tables(events: Any) -> str:
    """The times by operator and by class of module, longest first.

    Args:
        events: sums of a profile.
    """
    modules = [event for event in events if event.key.startswith(_MODULE)]
    operators = [event for event in events if not event.key.startswith(_MODULE)]
    whole = sum(event.self_cpu_time_total for event in operators) or 1.0
    lines = [f"{'operator':44}{'calls':>8}{'ms, itself':>12}{'share':>8}"]
    for event in sorted(operators, key=lambda e: -e.self_cpu_time_total)[:_ROWS]:
        own = event.self_cpu_time_total
        lines.append(f"{event.key[:43]:44}{event.count:8d}{own / 1000:12.2f}{own / whole:8.1%}")
    lines.append(f"\n{'module':44}{'calls':>8}{'ms, whole':>12}{'share':>8}")
    for event in sorted(modules, key=lambda e: -e.cpu_time_total)[:_ROWS]:
        own, name = event.cpu_time_total, event.key.removeprefix(_MODULE)
        lines.append(f"{name[:43]:44}{event.count:8d}{own / 1000:12.2f}{own / whole:8.1%}")
    return "\n".join(lines)


def _named_modules() -> list[Any]:
    """Hooks that record every call of a module by the name of its class."""
    calls: list[Any] = []

    def enter(module: nn.Module, _: Any) -> None:
        record = record_function(_MODULE + type(module).__name__)
        record.__enter__()
        calls.append(record)

    def leave(*_: Any) -> None:
        if calls:
            calls.pop().__exit__(None, None, None)

    return [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
