"""The tables of metrics and of feature networks: what they name is there, and docs/evaluation.md shows them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unistep.metrics.features.table import FEATURES, FeatureRow
from unistep.metrics.metric import Metric, function_at
from unistep.metrics.table import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
REFERENCES = {"nothing": "none", "moments": "images or statistics", "vectors": "images"}


def metric_row(metric: Metric) -> str:
    also = ", ".join(f"`{name}`" for name in (metric.group, metric.alias) if name)
    cells = [f"`{metric.name}`", also, metric.text, metric.kind, REFERENCES[metric.needs], metric.error]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def feature_row(row: FeatureRow) -> str:
    weights = row.weights.replace("`features_path`", "`--features-path`")
    return f"| `{row.shown}` | {row.text} | {weights} | {row.frechet} |"


def rows_below(heading: str) -> list[str]:
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `.*\|$", section, re.MULTILINE)


def test_the_page_shows_the_metrics():
    assert rows_below("Metrics") == [metric_row(metric) for metric in METRICS.values()]


def test_the_page_shows_the_feature_networks():
    assert rows_below("Feature networks") == [feature_row(row) for row in FEATURES.values()]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_functions_of_metrics_are_there(metric: Metric):
    assert callable(function_at(metric.compute))
    assert not metric.value or callable(function_at(metric.value))


@pytest.mark.parametrize("row", FEATURES.values(), ids=FEATURES)
def test_the_classes_of_feature_networks_are_there(row: FeatureRow):
    module, _, name = row.network.rpartition(".")
    assert isinstance(getattr(importlib.import_module(f"unistep.metrics.features.{module}"), name), type)


def test_no_name_means_two_things():
    names = [name for metric in METRICS.values() for name in {metric.name, metric.alias} if name]
    groups = {metric.group for metric in METRICS.values() if metric.group}
    assert len({*names, *groups}) == len(names) + len(groups)


def test_the_tables_need_no_torch():
    tables = "unistep.metrics.table, unistep.metrics.features.table, unistep.searching.table"
    code = f"import sys, {tables}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "numpy", "PIL", "rich"} & set(done.stdout.split())
