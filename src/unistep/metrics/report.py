"""Report of an evaluation: numbers with their errors, and everything that they depend on."""

import datetime
import html
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unistep.arguments import plain_arguments
from unistep.checks import check_file
from unistep.errors import UserError
from unistep.files import whole_file
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.info import KINDS, FeatureInfo, Kind
from unistep.metrics.metric import Better
from unistep.metrics.moments import Moments
from unistep.text import version_of


@dataclass(frozen=True)
class Result:
    """One number of a report.

    Args:
        name: key in reports.
        title: title in tables; it names the network that the number depends on, as FD-MNIST.
        estimate: number and its error.
        better: direction of improvement.
        notes: values that belong to the number, by name; JSON.
    """

    name: str
    title: str
    estimate: Estimate
    better: Better
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def value(self) -> float:
        """The number."""
        return self.estimate.value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval."""
        return self.estimate.interval

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of metrics.json."""
        return {
            "title": self.title,
            "value": self.value,
            "standard_error": self.estimate.standard_error,
            "interval_95": list(self.interval),
            "better": self.better,
            **self.notes,
        }


@dataclass(frozen=True, repr=False)
class Report(Mapping[str, Result]):
    """Outcome of an evaluation, a mapping from the names of numbers to `Result`: `report["fd"].value`.

    Args:
        results: numbers in order.
        samples: description of the images that were evaluated.
        reference: description of the reference; None without one.
        features: identity of the feature network.
        warnings: lines on what limits the numbers.
        pictures: functions that write a picture as PNG, by the ending of the file's name.
        reference_moments: moments of the reference's features, by kind.
        files: files that the report was saved to, the JSON first.
    """

    results: tuple[Result, ...]
    samples: dict[str, Any]
    reference: dict[str, Any] | None
    features: FeatureInfo
    warnings: tuple[str, ...] = ()
    pictures: Mapping[str, Callable[[Path], object]] = field(default_factory=dict, compare=False)
    reference_moments: Mapping[Kind, Moments] = field(default_factory=dict, compare=False)
    files: tuple[Path, ...] = field(default=(), compare=False)

    def __getitem__(self, name: str) -> Result:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"{name}; there are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return (result.name for result in self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def heading(self) -> str:
        """Samples and reference, as text of one line."""
        against = "" if self.reference is None else f" against {self.reference['name']}"
        return f"{self.samples['count']:,} images of {self.samples['name']}{against}"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Returns the table as text: title, value, 95% interval and better direction of each number."""
        return [
            (r.title, f"{r.value:.5g}", "{:.4g} to {:.4g}".format(*r.interval), r.better)  # noqa: UP032
            for r in self.results
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of metrics.json: numbers, and everything that they depend on."""
        info = self.features
        return {
            "metrics": {result.name: result.to_dict() for result in self.results},
            "features": {
                "name": info.name,
                "sha256": info.digest,
                "resize": info.resize,
                "dimensions": {kind: info.dims[kind] for kind in KINDS if kind in info.dims},
                "key": info.key,
            },
            "samples": self.samples,
            "reference": self.reference,
            "warnings": list(self.warnings),
            "made": {
                "on": datetime.date.today().isoformat(),
                **{name: version_of(name) for name in ("unistep", "torch", "numpy", "pillow")},
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        }

    @plain_arguments()
    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes the report as JSON and its pictures beside it; each file appears whole.

        Args:
            path: place of the JSON; pictures go to NAME-ENDING.png beside it.

        Returns:
            The files that were written, the JSON first.

        Raises:
            UserError: a file cannot be written, or does not end in .json.
        """
        path = Path(path)
        check_file("path", path, (".json",))
        written = [path]
        try:
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=2, default=str) + "\n")
            for ending, draw in self.pictures.items():
                written.append(path.with_name(f"{path.stem}-{ending}.png"))
                draw(written[-1])
        except OSError as error:
            raise UserError(f"cannot write {written[-1]}: {error.strerror or error}; choose another place") from None
        return written

    def __repr__(self) -> str:
        return f"Report({', '.join(f'{result.title} {result.estimate}' for result in self.results)})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("metric", "value", "95% interval", "better"))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in self.rows())
        notes = "".join(f"<p>{html.escape(warning)}</p>" for warning in self.warnings)
        return f"<p>{html.escape(self.heading)}</p><table><tr>{head}</tr>{body}</table>{notes}"
