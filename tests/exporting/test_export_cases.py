"""Inputs that a program is compared on: every class, and no more images than it takes."""

import torch

import unistep
from unistep.exporting.cases import MOST_CLASSES, Cases
from unistep.exporting.compare import count_cases
from unistep.exporting.make import make_program


def cases(saved, classes, batches, **program):
    model = unistep.load(saved("consistency", num_class_embeds=classes))
    made = make_program(model, **({"name": "denoiser"} | program))
    calls = []
    model.denoiser.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    found = list(Cases(made, model.info, batches))
    assert len(found) == count_cases(made, batches)
    return found, calls, made


def test_every_class_is_tried_once_at_least(saved):
    found, calls, _ = cases(saved, 40, [1, 2])
    labels = torch.cat([inputs[-1] for *_, inputs in found])
    assert set(labels.tolist()) == set(range(40)) and len(labels) <= 3 * 3 + 38
    assert calls == [1, 2]  # images of further classes are hidden by noise
    assert {noise for _, noise, _, _ in found[9:]} == {"high"}


def test_classes_beyond_the_limit_are_spread(saved):
    found, _, _ = cases(saved, 1000, [3])
    labels = torch.cat([inputs[-1] for *_, inputs in found]).unique()
    assert len(labels) >= MOST_CLASSES and labels.max() > 950 and labels.diff().max() == 10


def test_images_keep_their_classes_at_all_levels(saved):
    found, _, _ = cases(saved, 7, [4])
    assert len({tuple(inputs[-1].tolist()) for *_, inputs in found[:3]}) == 1
    low = {noise: inputs[0] for _, noise, _, inputs in found[:3]}["low"]
    assert low.abs().max() < 1.2


def test_samplers_and_edits_cover_their_classes(saved):
    for program in ({"name": "sampler", "steps": 2}, {"name": "edit", "steps": 2}):
        found, _, _ = cases(saved, 9, [1, 2], **program)
        assert {int(label) for *_, inputs in found for label in inputs[-1]} == set(range(9))
