"""Profiles of sampling and of training: a trace, and tables by operator and by module."""

import json
import logging
from pathlib import Path

import pytest
import torch

import unistep
from unistep.errors import UserError
from unistep.runtime.profiling import check_trace, profiled


def names(path: Path) -> set[str]:
    return {event["name"] for event in json.loads(path.read_text())["traceEvents"]}


def test_sampling(tmp_path: Path, caplog):
    path = tmp_path / "trace.json"
    with caplog.at_level(logging.INFO, "unistep"):
        plain = unistep.sample(num_images=2, progress=False)
        images = unistep.sample(num_images=2, profile=path, progress=False)
    assert (images.pixels == plain.pixels).all()
    assert {"module ResBlock", "module Attention"} <= names(path)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "operator" in text and "aten::" in text and "ResBlock" in text


@pytest.mark.parametrize(("steps", "recorded"), [(14, True), (1, False)])
def test_some_steps_of_an_optimizer(tmp_path: Path, steps: int, recorded: bool):
    path, said = tmp_path / "trace.json.gz", []
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with profiled(path, said.append, steps=True):
        for _ in range(steps):
            layer(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    assert path.exists() == recorded
    assert len(said) == 1 and ("Linear" in said[0]) == recorded
    layer(torch.ones(2, 3))  # no hook is left


@pytest.mark.slow
def test_training(tmp_path: Path, caplog):
    path = tmp_path / "trace.json"
    tiny = {"block_out_channels": [8, 8], "attention_head_dim": 8}
    stages = {"teacher": {"steps": 14, "batch_size": 2}, "student": {"steps": 1, "batch_size": 2}}
    with caplog.at_level(logging.INFO, "unistep"):
        unistep.train("mnist-quick", output=tmp_path / "run", progress=False, profile=path, network=tiny, **stages)
    found = names(path)
    assert "module ResBlock" in found and "ProfilerStep#2" in found and "ProfilerStep#12" not in found
    assert any("ResBlock" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["trace.txt", "missing/trace.json"])
def test_places_of_a_trace(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="trace"):
        check_trace(tmp_path / name)
