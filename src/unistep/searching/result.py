"""Outcome of a search: the schedules that were found, beside those that they are to replace."""

import html
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unistep.arguments import plain_arguments
from unistep.formats.model import ModelInfo
from unistep.metrics.metric import Better
from unistep.searching.plot import curves_png, save_curves
from unistep.searching.record import SearchRecord
from unistep.searching.scores import Found, listed


@dataclass(frozen=True, repr=False)
class SearchResult(Mapping[int, Found]):
    """Schedules by their number of steps: `result[2].schedule`.

    Args:
        found: results, by rising number of steps.
        model: name of the model.
        metric: title of the numbers.
        better: direction of improvement.
        num_images: number of images a schedule.
        info: information of the model, for the noise levels of its grid.
        record: everything that was computed.
        task: name of the task of editing; None for a sampler.
        task_options: options of the task's measurements, as `unistep.edit` takes them.
        settle: number of evaluations of a task without noise at the end.
        files: files that were written, search.json first.
        kept: numbers of steps whose schedules were written into the model folder.
        kept_in: file of the model folder that they were written to; None where nothing was to be written.
    """

    found: tuple[Found, ...]
    model: str
    metric: str
    better: Better
    num_images: int
    info: ModelInfo
    record: SearchRecord
    task: str | None = None
    task_options: Mapping[str, Any] = field(default_factory=dict)
    settle: int = 0
    files: tuple[Path, ...] = ()
    kept: tuple[int, ...] = ()
    kept_in: Path | None = None

    def __getitem__(self, steps: int) -> Found:
        for found in self.found:
            if found.steps == steps:
                return found
        raise KeyError(f"{steps}; there are {', '.join(map(str, self))} steps")

    def __iter__(self) -> Iterator[int]:
        return (found.steps for found in self.found)

    def __len__(self) -> int:
        return len(self.found)

    def options(self, steps: int) -> dict[str, Any]:
        """Returns keyword arguments of `unistep.sample`, or of `unistep.edit` for a task, with a schedule in them.

        Args:
            steps: number of steps of the schedule.

        Raises:
            KeyError: there is none of so many steps.
        """
        found = self[steps]
        if self.task is None:
            return {found.unit: list(found.timesteps)}
        settle = {"settle": self.settle} if self.settle else {}
        return {**self.task_options, found.unit: list(found.schedule), **settle}

    @property
    def heading(self) -> str:
        """Model and metric, as text of one line."""
        task = "" if self.task is None else f", {self.task}"
        return f"{self.model}{task}: {self.metric} of {self.num_images:,} fresh images, {self.better} is better"

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        last = () if self.task is None else ("residual",)
        return ("steps", "schedule", self.found[0].unit, self.metric, "found minus this", *last)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table as text; the number of steps stands in the first row of each."""
        return [
            (
                str(found.steps) if place == 0 else "",
                ", ".join(judged.names),
                listed(judged.schedule),
                str(judged.fresh),
                "" if judged.difference is None else str(judged.difference),
                *([] if judged.residual is None else [f"{judged.residual:.3f}"]),
            )
            for found in self.found
            for place, judged in enumerate(found.judged)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of search.json: results, all numbers, and everything that they depend on."""
        return self.record.to_dict()

    @plain_arguments()
    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes search.json and curve.png; each appears whole.

        Args:
            folder: folder for the files; it is made where it is missing.

        Returns:
            The files.

        Raises:
            UserError: a file cannot be written, or matplotlib is not installed.
        """
        json, picture = Path(folder) / "search.json", Path(folder) / "curve.png"
        self.record.write_to(json)
        save_curves(picture, self.found, self.info, self.title, self.metric)
        return [json, picture]

    @property
    def title(self) -> str:
        """Title of the picture."""
        task = "" if self.task is None else f", {self.task}"
        return f"{Path(self.model).name}{task}: {self.num_images:,} images a candidate"

    def __repr__(self) -> str:
        best = ", ".join(f"{found.steps} steps: {listed(found.schedule)}" for found in self.found)
        return f"SearchResult({self.metric}; {best})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in self.rows())
        return f"<p>{html.escape(self.heading)}</p><table><tr>{head}</tr>{body}</table>"

    def _repr_png_(self) -> bytes:
        return curves_png(self.found, self.info, self.title, self.metric)
