"""The scheduler's config and files, its conversions, and schedules that begin anywhere; beside diffusers' class."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from unistep import CMStochasticIterativeScheduler as Scheduler
from unistep import ConsistencyModelPipeline
from unistep.errors import UserError

Theirs = diffusers.CMStochasticIterativeScheduler
OTHER = {"num_train_timesteps": 201, "sigma_min": 0.01, "sigma_max": 40.0, "s_noise": 1.007, "clip_denoised": False}


def test_the_config_is_a_dict_and_has_attributes():
    config = Scheduler(**OTHER).config
    assert isinstance(config, dict) and dict(config) == {k: v for k, v in Theirs(**OTHER).config.items() if k[0] != "_"}
    assert config["sigma_max"] == config.sigma_max == config.get("sigma_max") == Scheduler(**OTHER).sigma_max == 40
    assert "rho" in config and len(config) == 7 and {**config}["rho"] == 7 and config.noise_embedding == "adm"
    assert json.loads(json.dumps(config)) == config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))
    with pytest.raises(AttributeError, match="sigma_maxx"):
        _ = config.sigma_maxx
    with pytest.raises(AttributeError, match="sigma_maxx"):
        _ = Scheduler().sigma_maxx


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(rho=1),
        lambda c: c.__setitem__("rho", 1),
        lambda c: setattr(c, "rho", 1),
        lambda c: c.pop("rho"),
        lambda c: c.clear(),
        lambda c: c.__ior__({"rho": 1}),
        lambda c: c.__delitem__("rho"),
        lambda c: c.setdefault("x", 1),
    ],
)
def test_the_config_does_not_change(change: Any):
    scheduler = Scheduler()
    with pytest.raises(UserError, match="read-only"):
        change(scheduler.config)
    assert scheduler.config == Scheduler().config


def test_schedulers_are_made_of_configs_of_either():
    assert Scheduler(**Scheduler(**OTHER).config).config == Scheduler.from_config(Theirs(**OTHER).config).config
    assert (
        Theirs(**Scheduler(**OTHER).config).config.sigma_max
        == Theirs.from_config(Scheduler(**OTHER).config).config.sigma_max
    )
    assert Scheduler.from_config(Scheduler(**OTHER).config, sigma_max=30).config.sigma_max == 30
    scheduler, unused = Scheduler.from_config({"sigma_max": 30.0, "beta": 1}, return_unused_kwargs=True, gamma=2)
    assert scheduler.config.sigma_max == 30 and unused == {"beta": 1, "gamma": 2}


def test_defaults_of_another_class_are_no_settings():
    euler = diffusers.EulerDiscreteScheduler(beta_end=0.5).config  # 1000 levels by default
    for chosen in (euler, diffusers.EulerDiscreteScheduler(num_train_timesteps=300).config):
        assert Scheduler.from_config(chosen).config.num_train_timesteps == (
            Theirs.from_config(chosen).config.num_train_timesteps
        )


def test_what_is_left_out_of_a_config_is_said(caplog: pytest.LogCaptureFixture):
    config = {"_class_name": "X", "_diffusers_version": "0.18", "timesteps": None, "rho": 5.0}
    assert Scheduler.from_config(config).config.rho == 5 and caplog.messages == []
    Scheduler.from_config(config | {"beta_start": 0.1})
    assert caplog.messages == ["not used, for a CMStochasticIterativeScheduler has no such setting: beta_start"]


@pytest.mark.parametrize("embedding", ["adm", "edm"])
def test_files_of_either_open_in_either(tmp_path: Path, embedding: Any):
    ours = Scheduler(**OTHER, noise_embedding=embedding)
    ours.save_pretrained(tmp_path / "ours")
    Theirs(**OTHER).save_config(tmp_path / "theirs")
    again = Theirs.from_pretrained(tmp_path / "ours")
    assert {k: again.config[k] for k in OTHER} == OTHER
    assert Scheduler.from_pretrained(tmp_path / "theirs").config == Scheduler(**OTHER).config
    for place in (tmp_path / "ours", tmp_path / "ours" / "scheduler_config.json", str(tmp_path / "ours")):
        assert Scheduler.from_pretrained(place).config == ours.config
    assert Scheduler.from_config(Scheduler.load_config(tmp_path / "ours")).config == ours.config
    config, unused, commit = Scheduler.load_config(
        tmp_path / "ours", return_unused_kwargs=True, return_commit_hash=True, force_download=True, x=1
    )
    assert config["_class_name"] == "CMStochasticIterativeScheduler" and (unused, commit) == ({"x": 1}, None)
    ours.to_json_file(tmp_path / "x" / "any.json")
    assert json.loads((tmp_path / "x" / "any.json").read_text()) == config == json.loads(ours.to_json_string())
    assert repr(ours).startswith("CMStochasticIterativeScheduler {")


def test_a_model_folder_has_one(model_folder):
    folder = model_folder()
    expected = Scheduler().config
    assert Scheduler.from_pretrained(folder, subfolder="scheduler").config == expected
    assert Scheduler.from_pretrained(folder).config == expected
    changed, unused = Scheduler.from_pretrained(folder, return_unused_kwargs=True, sigma_max=30.0, x=1)
    assert changed.config.sigma_max == 30 and unused == {"x": 1}


def test_a_model_folder_has_what_diffusers_has_no_field_for(saved):
    """As ECT's models have it."""
    folder = saved("consistency", info={"clip": False, "noise_embedding": "edm", "sigma_max": 60.0})
    config = Scheduler.from_pretrained(folder).config
    assert (config.clip_denoised, config.noise_embedding, config.sigma_max) == (False, "edm", 60)
    assert Scheduler.from_config(Scheduler.load_config(folder, subfolder="scheduler")).config == config
    assert config == ConsistencyModelPipeline.from_pretrained(folder).scheduler.config


def test_copies_go_on_where_the_scheduler_stands():
    scheduler = Scheduler()
    scheduler.set_timesteps(3)
    x = torch.ones(1, 1, 2, 2)
    x = scheduler.step(x, scheduler.timesteps[0], x, torch.Generator().manual_seed(0)).prev_sample
    for again in (copy.deepcopy(scheduler), copy.copy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert again.step_index == 1 and torch.equal(again.timesteps, scheduler.timesteps)
        assert again.config == scheduler.config


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    "timesteps",
    [[22, 0], [39, 22], [5], [39], [20, 10, 1], (7, 2), range(10, 0, -3), np.array([30, 3]), torch.tensor([12, 4])],
    ids=str,
)
def test_schedules_begin_anywhere(timesteps: Any):
    ours, theirs = Scheduler(), Theirs()
    ours.set_timesteps(timesteps=timesteps)
    theirs.set_timesteps(timesteps=[int(t) for t in timesteps])
    assert ours.custom_timesteps
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)
    x = y = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    for a, b in zip(ours.timesteps, theirs.timesteps, strict=True):
        u, v = ours.scale_model_input(x, a), theirs.scale_model_input(y, b)
        x = ours.step(u.tanh(), a, x, torch.Generator().manual_seed(1))["prev_sample"]
        y = theirs.step(v.tanh(), b, y, torch.Generator().manual_seed(1))["prev_sample"]
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_sigmas_begin_anywhere():
    scheduler = Scheduler()
    scheduler.set_timesteps(sigmas=np.array([3.0, 0.5]))
    assert scheduler.sigmas.tolist() == pytest.approx([3.0, 0.5, 0.002])


def test_edits_of_images_begin_in_the_middle():
    ours, theirs = Scheduler(), Theirs()
    x, noise = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    for begin in (None, 2):
        added = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(5)
            if begin is not None:
                scheduler.set_begin_index(begin)
            added.append(scheduler.add_noise(x, noise, scheduler.timesteps[[2, 2]]))
            scheduler.scale_model_input(x, scheduler.timesteps[2])
            assert scheduler.step_index == scheduler.index_for_timestep(scheduler.timesteps[2]) == 2
            added.append(scheduler.add_noise(x, noise, scheduler.timesteps[[2, 2]]))
        torch.testing.assert_close(added[:2], added[2:])


def test_conversions_are_theirs():
    ours, theirs = Scheduler(sigma_min=0.01), Theirs(sigma_min=0.01)
    for sigmas in (80.0, 3, np.float32(0.5), np.array([0.0, 1.0, 80.0]), [1.0, 2.0]):
        found, expected = ours.sigma_to_t(sigmas), theirs.sigma_to_t(sigmas)
        assert type(found) is type(expected) and found == pytest.approx(expected, abs=1e-9)
    assert isinstance(ours.sigma_to_t(torch.tensor(2.0)), torch.Tensor)
    sigma = torch.tensor(3.0)
    torch.testing.assert_close(ours.get_scalings(sigma), theirs.get_scalings(sigma))
    found = ours.get_scalings_for_boundary_condition(sigma)
    torch.testing.assert_close(found, theirs.get_scalings_for_boundary_condition(sigma))
    assert (ours.order, ours.init_noise_sigma, len(ours)) == (theirs.order, theirs.init_noise_sigma, len(theirs))
    assert ours.config_name == theirs.config_name and ours.compatibles == [Scheduler]


def test_numbers_of_numpy_are_numbers():
    scheduler = Scheduler(np.int64(40), sigma_max=np.float32(80), clip_denoised=np.bool_(True))
    assert scheduler.config == Scheduler().config and type(scheduler.config.sigma_max) is float
    x = torch.zeros(1, 1, 2, 2)
    for t in (3, np.int64(3), torch.tensor(3), torch.tensor([3])):
        with pytest.raises(UserError, match="integer indices"):
            scheduler.step(x, t, x)
    for t in (float(scheduler.timesteps[4]), scheduler.timesteps[4:5], np.float64(scheduler.timesteps[4])):
        assert scheduler.index_for_timestep(t) == 4


def test_the_result_of_a_step_in_every_way():
    scheduler = Scheduler()
    x = torch.ones(1, 1, 2, 2)
    output = scheduler.step(x, scheduler.timesteps[0], x, torch.Generator().manual_seed(0))
    assert output["prev_sample"] is output[0] is output.prev_sample is output.to_tuple()[0]
    (sample,) = output
    assert sample is output.prev_sample and dict(output).keys() == {"prev_sample"}
    with pytest.raises(KeyError):
        output["sample"]
    result = scheduler.step(x, scheduler.timesteps[1], x, torch.Generator(), return_dict=False)
    assert isinstance(result, tuple) and result[0].shape == x.shape


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Scheduler(sigma_min=90.0), "below `sigma_max`"),
        (lambda: Scheduler(sigma_max=float("inf")), "sigma_max"),
        (lambda: Scheduler(sigma_max=float("nan")), "sigma_max"),
        (lambda: Scheduler(rho=0.0), "rho"),
        (lambda: Scheduler(sigma_data=-1.0), "sigma_data"),
        (lambda: Scheduler(num_train_timesteps=0), "num_train_timesteps"),
        (lambda: Scheduler(num_train_timesteps=10**7), "num_train_timesteps"),
        (lambda: Scheduler.from_config({"sigma_max": "80"}), "sigma_max"),
        (lambda: Scheduler.from_config({"clip_denoised": 1}), "clip_denoised"),
        (lambda: Scheduler.from_config({"noise_embedding": "x"}), "noise_embedding"),
        (lambda: Scheduler.from_config(), "no config"),
        (lambda: Scheduler.from_config([1]), "no config"),
        (lambda: Scheduler().set_timesteps(timesteps=[5, -1]), "begin with 0"),
        (lambda: Scheduler().set_timesteps(timesteps=[5.5, 0]), "timesteps"),
        (lambda: Scheduler().set_timesteps(timesteps=["a"]), "timesteps"),
        (lambda: Scheduler().set_timesteps(timesteps=np.array([[22, 0]])), "timesteps"),
        (lambda: Scheduler().set_timesteps(timesteps=np.array(3)), "timesteps"),
        (lambda: Scheduler().set_timesteps(sigmas=[float("inf"), 1.0]), "sigmas"),
        (lambda: Scheduler().set_timesteps(sigmas=[]), "sigmas"),
        (lambda: Scheduler().set_timesteps(torch.tensor(2.5)), "num_inference_steps"),
        (lambda: Scheduler().set_timesteps(True), "num_inference_steps"),
        (lambda: Scheduler().set_timesteps(2, device="nowhere"), "nowhere"),
        (lambda: Scheduler().set_begin_index(-1), "begin_index"),
        (lambda: Scheduler().push_to_hub("me/scheduler"), "pipeline"),
        (lambda: Scheduler().save_config("x", push_to_hub=True), "pipeline"),
        (lambda: Scheduler.load_config("no/such/place"), "no file or folder"),
        (lambda: Scheduler.load_config(Path(__file__).parent), "scheduler_config.json"),
        (lambda: Scheduler.load_config(Path(__file__)), "not readable JSON"),
        (lambda: Scheduler.load_config("o/m", proxies={"http": "x"}), "HTTPS_PROXY"),
        (lambda: Scheduler.load_config("o/m", force_download=True, local_files_only=True), "force_download"),
    ],
)
def test_one_line_refusals(call: Any, words: str):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Scheduler.from_config({}, sigma_mx=3.0), "from_config.*'sigma_mx'; did you mean sigma_max"),
        (lambda: Scheduler.from_pretrained("x", local_file_only=True), "did you mean local_files_only"),
        (lambda: Scheduler.load_config("x", revisionn="main"), "did you mean revision"),
        (lambda: Scheduler().save_config("x", repo="a/b"), "did you mean repo_id"),
    ],
)
def test_misspelt_options_are_errors(call: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Scheduler().save_config("x")
    with pytest.raises(TypeError, match=words):
        call()
