"""The search for a model's timesteps, with a model whose best ones are known."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from unistep.core.noise import karras_sigma
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.info import FeatureInfo
from unistep.metrics.table import METRICS
from unistep.networks.adm import UNetConfig
from unistep.searching import sampler_schedules as module
from unistep.searching.metric import SearchMetric
from unistep.searching.plot import save_curves
from unistep.searching.record import SearchRecord, open_record
from unistep.searching.sampler_schedules import (
    ScheduleSearch,
    check_searchable,
    search_settings,
    with_schedules,
    worth_keeping,
)
from unistep.searching.scores import EVEN, FOUND, OWN, Found, Judged
from unistep.workflows.models import EMBEDDED, open_any, own_schedule_file

LEVELS, BEST = 20, 13


def sigma_of(index, info=ModelInfo(num_train_timesteps=LEVELS)):  # noqa: B008
    return float(karras_sigma(torch.tensor([float(index)]), LEVELS, info.sigma_min, info.sigma_max, info.rho))


class Known(nn.Module):
    """A consistency function whose images are grey: a mistake and a little of the noise.

    The mistake is none at the best level, and the greater the farther the level is from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        self.calls += len(x)
        sigma = torch.exp(c_noise / 250)[:, None, None, None]
        c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        c_out = 0.5 * (sigma - 0.002) / (sigma**2 + 0.25).sqrt()
        noisy = x * (sigma**2 + 0.25).sqrt()
        distance = (sigma.log() - math.log(sigma_of(BEST))).abs() / 6
        mistake = 0.8 * distance.clamp(max=1)
        own = 0.1 * torch.tanh((noisy[..., :1, :1] - noisy[..., :1, 1:2]) / sigma)
        return ((mistake + own).expand_as(noisy) - c_skip * noisy) / c_out


class Brightness:
    info = FeatureInfo("brightness", "Brightness", "0" * 64, "none", {"pool": 1})

    def __call__(self, images, kinds):
        return {"pool": images.flatten(1).float().mean(dim=1, keepdim=True) / 127.5 - 1}


def size_of_mistake(features):
    return features.square().mean().item()


def metric_of(better="lower", **changes):
    row = dataclasses.replace(METRICS["fd"], better=better, least=-math.inf)
    return dataclasses.replace(SearchMetric(row, "FD-Brightness", "d" * 64, size_of_mistake), **changes)


def model_of(**info):
    info = ModelInfo(num_train_timesteps=LEVELS, **info)
    config = UNetConfig(sample_size=4, in_channels=1, out_channels=1)
    return LoadedModel(precondition(Known(), info), info, config, Path("known"))


def search_of(tmp_path, model=None, metric=None, seed=0, **options):
    model, metric = model or model_of(), metric or metric_of()
    settings = search_settings(model, metric, num_images=32, seed=seed, dtype=torch.float32)
    record = open_record(tmp_path / "search.json", settings)
    return ScheduleSearch(model, Brightness(), metric, record, num_images=32, seed=seed, **options)


# ------------------------------------------------------------------------------------------------------- what is found


def test_the_known_timesteps_are_found(tmp_path):
    search = search_of(tmp_path, model_of(timesteps=(0, 5)))
    found = search.find(2)
    assert found.timesteps == (0, BEST) and found.steps == 2
    assert [(j.names, j.schedule) for j in found.judged] == [
        ((FOUND,), (0, BEST)),
        ((EVEN,), (0, 9)),
        ((OWN,), (0, 5)),
    ]
    best, even, own = found.judged
    assert best.searched < even.searched < own.searched and best.fresh.value < even.fresh.value < own.fresh.value
    assert best.difference is None
    assert even.difference.value == pytest.approx(best.fresh.value - even.fresh.value)
    (curve,) = found.curves
    assert curve[BEST] == best.searched == min(curve.values())
    assert curve[9] == even.searched and curve[5] == own.searched
    assert {BEST - 1, BEST + 1} <= set(curve)
    assert found.of(EVEN) is even and found.of("nothing") is None
    assert worth_keeping(found, "lower") and not worth_keeping(found, "higher")
    assert len(search.record.scores) < 12


def test_what_one_number_of_steps_has_found_the_next_starts_from(tmp_path):
    search = search_of(tmp_path)
    two, three = search.find(2), search.find(3)
    assert three.judged[0].searched < three.of(EVEN).searched
    asked = [s for s in search.record.scores if len(s) == 3]
    assert any(set(two.timesteps) <= set(s) for s in asked)
    assert [f["steps"] for f in json.loads((tmp_path / "search.json").read_text())["found"]] == [2, 3]


def test_more_can_be_better(tmp_path):
    metric = metric_of(better="higher", value=lambda f: 5 - size_of_mistake(f))
    found = search_of(tmp_path, metric=metric).find(2)
    assert found.timesteps == (0, BEST)
    assert found.curves[0][BEST] == max(found.curves[0].values()) > 4
    assert found.of(EVEN).difference.value > 0
    assert worth_keeping(found, "higher") and not worth_keeping(found, "lower")


def test_schedules_that_are_one_have_all_their_names(tmp_path):
    found = search_of(tmp_path, model_of(timesteps=(0, BEST))).find(2)
    assert [j.names for j in found.judged] == [(FOUND, OWN), (EVEN,)]
    assert not worth_keeping(found, "lower")  # it is there already


def test_an_own_schedule_that_ends_at_sigma_min_is_compared(tmp_path):
    found = search_of(tmp_path, model_of(timesteps=(0, LEVELS - 1))).find(2)
    assert found.timesteps == (0, BEST) and found.of(OWN).schedule == (0, LEVELS - 1)


# ------------------------------------------------------------------------------------------------------ how it is found


def test_all_candidates_see_the_same_noise_and_the_judges_other_noise(tmp_path, monkeypatch):
    calls = []
    generate = module.generate

    def seen(denoiser, plan, shape, part, **options):
        calls.append((plan.sigmas[1], part, options["seed"]))
        return generate(denoiser, plan, shape, part, **options)

    monkeypatch.setattr(module, "generate", seen)
    search_of(tmp_path, seed=7).find(2)
    searched, fresh = ([c for c in calls if c[1] == part] for part in (range(32), range(32, 64)))
    assert len(searched) + len(fresh) == len(calls) and {seed for *_, seed in calls} == {7}
    assert len({sigma for sigma, *_ in searched}) == len(searched) > 4
    assert len(fresh) == 2  # what was found, and evenly spaced


def test_the_first_evaluation_is_made_once(tmp_path):
    model = model_of()
    search = search_of(tmp_path, model)
    search.find(2)
    measured = len(search.record.scores) + len(search.record.fresh)
    assert model.denoiser.network.calls == 32 * (2 + measured)  # of the images of the search, and of the fresh ones


def test_differences_are_surer_than_numbers(tmp_path):
    """The same noise is in both."""
    noisy = metric_of(value=lambda f: f.mean().item())
    even = search_of(tmp_path, metric=noisy).find(2).of(EVEN)
    assert 0 < even.difference.standard_error < even.fresh.standard_error / 3


def test_progress_is_told(tmp_path):
    told = []
    search_of(tmp_path, on_progress=lambda *args: told.append(args), batch_size=16).find(2)
    assert told[:3] == [("timesteps 0,9", done, 32) for done in (0, 16, 32)]
    assert told[-1] == ("timesteps 0,9 on fresh images", 32, 32)


# ------------------------------------------------------------------------------------------------------- going on later


def test_a_broken_off_search_goes_on_and_finds_the_same(tmp_path, monkeypatch):
    whole = search_of(tmp_path / "whole")
    expected = [whole.find(2), whole.find(3)]
    made = []
    generate = module.generate

    def until_stopped(denoiser, plan, *args, **options):
        made.append(plan)
        if len(made) == 6:
            raise KeyboardInterrupt
        return generate(denoiser, plan, *args, **options)

    monkeypatch.setattr(module, "generate", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        search_of(tmp_path / "stopped").find(2)
    again = search_of(tmp_path / "stopped")
    assert len(again.record.scores) == 5
    assert [again.find(2), again.find(3)] == expected
    assert len(made) == 1 + len(whole.record.scores) + len(whole.record.fresh)  # the one that was stopped twice
    contents = [(tmp_path / name / "search.json").read_text() for name in ("whole", "stopped")]
    assert contents[0] == contents[1]


def test_a_finished_search_makes_no_images_again(tmp_path, monkeypatch):
    expected = search_of(tmp_path).find(2)
    monkeypatch.setattr(module, "generate", None)
    assert search_of(tmp_path).find(2) == expected


def test_schedules_written_to_the_model_do_not_change_the_settings():
    old, new = model_of(), model_of(timesteps=(0, 13), schedules=((0, 5, 13),))
    settings = [search_settings(m, metric_of(), num_images=32, seed=0, dtype=torch.float32) for m in (old, new)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 41}, r"a search that differs in number of images \(40, now 41\); delete it, or give another"),
        ({"seed": 1}, r"seed \(0, now 1\)"),
        ({"dtype": torch.bfloat16}, r"dtype \(float32, now bfloat16\)"),
        ({"metric": metric_of(digest="e" * 64)}, "differs in reference and features; delete"),
        ({"model": model_of(sigma_max=70.0)}, "model's noise range and scaling"),
    ],
)
def test_a_record_of_another_search_is_not_gone_on_with(tmp_path, change, message):
    arguments = {"model": model_of(), "metric": metric_of(), "num_images": 40, "seed": 0, "dtype": torch.float32}

    def settings(**changes):
        given = arguments | changes
        return search_settings(given.pop("model"), given.pop("metric"), **given)

    record = open_record(tmp_path / "new" / "search.json", settings())
    record.scores[(0, 5)] = 1.5
    record.fresh[(0, 5)] = (1.25, (1.0, 1.5))
    record.write()
    again = open_record(record.path, settings())
    assert (again.scores, again.fresh) == (record.scores, record.fresh)
    before = record.path.read_bytes()
    with pytest.raises(UserError, match=message) as refused:
        open_record(record.path, settings(**change))
    assert str(refused.value).startswith(str(record.path)) and "\n" not in str(refused.value)
    assert record.path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {}, "scores": {"x": 1}, "fresh": {}}', "{" * 9999])
def test_a_damaged_record(tmp_path, content):
    path = tmp_path / "search.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not the record of a search, or is damaged; delete it"):
        open_record(path, {})


def test_a_record_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*search.json: "):
        SearchRecord(tmp_path / "file" / "search.json", {}).write()


# ------------------------------------------------------------------------------------------------- what can be searched


def test_only_consistency_models(tmp_path):
    info = ModelInfo("diffusion")
    teacher = LoadedModel(precondition(Known(), info), info, UNetConfig(), Path("teacher"))
    with pytest.raises(UserError, match="teacher is a diffusion model, whose solver takes any number of `steps`"):
        check_searchable(teacher)


def test_where_schedules_can_be_written(saved, openai_pt):
    folder = saved("consistency")
    assert own_schedule_file(str(folder), open_any(folder)) == folder / "scheduler" / "scheduler_config.json"
    remedy = "make a folder of it first: unistep convert"
    for name in (None, str(EMBEDDED)):
        with pytest.raises(UserError, match=f"the embedded model is part of the package and stays as it is; {remedy}"):
            own_schedule_file(name, open_any(name))
    with pytest.raises(UserError, match=f"owner/name is on the hub, not here; {remedy} owner/name FOLDER"):
        own_schedule_file("owner/name", open_any(folder))
    file = openai_pt("cd_cat256_tiny.pt")
    with pytest.raises(UserError, match=f"cd_cat256_tiny.pt is a file and has no place for timesteps; {remedy}"):
        own_schedule_file(str(file), open_any(file))


def test_what_was_found_takes_the_place_of_what_was_there():
    info = with_schedules(ModelInfo(timesteps=(0, 5), schedules=((0, 4, 9),)), [(0, 13), (0, 5, 13), (0, 1, 2, 3)])
    assert info.timesteps == (0, 13) and info.schedules == ((0, 5, 13), (0, 1, 2, 3))


# ---------------------------------------------------------------------------------------------------------- the picture


def test_a_panel_for_each_number_of_steps_and_one_for_the_gain(tmp_path):
    from PIL import Image

    search = search_of(tmp_path, model_of(timesteps=(0, 5)))
    sizes = []
    for steps in (2, 3):
        search.find(steps)
        save_curves(tmp_path / "curve.png", search.found, search.info, "a title", "FD")
        with Image.open(tmp_path / "curve.png") as picture:
            sizes.append(picture.size)
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 100
    assert sizes[1][0] > 2.5 * sizes[0][0] and sizes[1][1] == sizes[0][1]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_picture_of_many_steps_has_room_for_its_curves(tmp_path):
    """A legend of 38 curves left none, of which matplotlib warned."""
    schedule = tuple(range(39))
    judged = (Judged((FOUND,), schedule, 1.0, Estimate(1.0, 0.1), None),)
    found = Found(schedule, tuple({float(i): 1.0} for i in schedule[1:]), judged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_curves(tmp_path / "curve.png", [found], ModelInfo(), "a title", "FD")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.delitem(__import__("sys").modules, "matplotlib.figure", raising=False)
    with pytest.raises(UserError, match=r"the curve is drawn with matplotlib: pip install 'unistep\[evaluate\]'"):
        save_curves(tmp_path / "curve.png", [], ModelInfo(), "", "")
