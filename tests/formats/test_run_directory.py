"""The models of runs, finished or not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unistep.errors import UserError
from unistep.formats.checkpoint import save_checkpoint
from unistep.formats.location import locate
from unistep.formats.model import ModelInfo, precondition
from unistep.formats.model_folder.folder import load_model, save_model, write_outline
from unistep.formats.run_directory import OUTLINE, is_run, load_run, newest_diffusion_stage, stage_names

CONFIG = "stages:\n  base: {method: edm, steps: 1000}\n  middle: {method: ect}\n  last: {method: ict, steps: 50}\n"


@pytest.fixture
def run(tmp_path, lively):
    """run(base="model", last=7): a run whose stages have ended, or have a checkpoint of so many steps."""

    def make(config: str = CONFIG, **stages: object) -> Path:
        (tmp_path / "config.yaml").write_text(config)
        for seed, (name, state) in enumerate(stages.items()):
            network = lively(seed, block_out_channels=(8, 8))
            info = ModelInfo("diffusion" if seed == 0 else "consistency")
            if state == "model":
                save_model(tmp_path / name / "model", network, info, card="")
            else:
                weights = precondition(network, info).state_dict()
                averages = {"0.9": weights, "0.5": {name: value + 1 for name, value in weights.items()}}
                save_checkpoint(tmp_path / name / "checkpoints", int(str(state)), {"ema": averages}, keep=1)
                write_outline(tmp_path / name / OUTLINE, network, info)
        return tmp_path

    return make


def same(model, network) -> bool:
    ours, theirs = model.denoiser.network.state_dict(), network.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_last_stage_that_has_come_to_a_model_is_the_runs(run, lively):
    folder = run(base="model", middle="model")
    assert load_run(folder).path == folder / "middle" / "model"
    assert load_run(folder / "base").path == folder / "base" / "model"
    assert newest_diffusion_stage(folder) == folder / "base"
    assert stage_names(folder) == ["base", "middle", "last"]


def test_a_stage_that_has_not_ended_is_a_model_by_its_newest_checkpoint(run, lively):
    """Of the first average, which is the one that is saved in the end; and it says that it is not finished."""
    folder = run(base="model", last=7)
    model = load_run(folder)
    assert same(model, lively(1, block_out_channels=(8, 8))) and model.info.kind == "consistency"
    assert not model.denoiser.training and not any(p.requires_grad for p in model.denoiser.parameters())
    assert model.notes == (f"{folder / 'last'} is not finished: this is its newest checkpoint, of step 7 of 50",)
    assert model.path == folder / "last" / "checkpoints" / "step-00000007.pt"
    again = load_run(folder / "last")
    assert same(again, model.denoiser.network) and again.notes == model.notes
    assert is_run(locate(folder, "")) and is_run(locate(folder / "last", ""))


def test_an_unfinished_model_can_be_looked_at(run):
    model = load_run(run(base=300), "meta")
    assert next(model.denoiser.parameters()).is_meta
    assert model.notes[0].endswith("of step 300 of 1,000")


def test_a_checkpoint_may_go_while_its_model_is_used(run):
    folder = run(base=3)
    model = load_run(folder)
    before = {name: value.clone() for name, value in model.denoiser.network.state_dict().items()}
    model.path.write_bytes(bytes(model.path.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.network.state_dict().items())


def test_runs_that_have_no_model(run):
    with pytest.raises(UserError, match=r"is a run without a checkpoint yet; resume its training"):
        load_run(run())


def test_what_is_damaged_is_named(run, lively):
    folder = run(base=3)
    with pytest.raises(UserError, match="`variant` fp16 is for a finished model"):
        load_run(folder, variant="fp16")
    write_outline(folder / "base" / OUTLINE, lively(block_out_channels=(16, 16)), ModelInfo())
    with pytest.raises(UserError, match="outline is of another network than the weights beside it"):
        load_run(folder)
    (folder / "base" / "checkpoints" / "step-00000003.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="checkpoint .*step-00000003.pt cannot be read"):
        load_run(folder)


@pytest.mark.parametrize("config", ["teacher: {steps: 9}\nstudent: {steps: 5}\n", "", "[", "stages: 3"])
def test_runs_of_the_former_form_and_damaged_configs(run, config):
    folder = run(config, teacher="model", student=4)
    assert stage_names(folder) == ["teacher", "student"]
    of = " of 5" if "steps" in config else ""
    assert load_run(folder).notes[0].endswith(f"of step 4{of}")


def test_an_outline_says_all_but_the_weights(run, lively):
    folder = run(base=3)
    info = ModelInfo("consistency", timesteps=(0, 5), num_train_timesteps=20)
    write_outline(folder / "base" / OUTLINE, lively(block_out_channels=(8, 8)), info)
    save_model(folder / "whole", lively(block_out_channels=(8, 8)), info, card="")
    whole, outline = load_model(folder / "whole"), load_run(folder)
    assert (outline.info, outline.config) == (whole.info, whole.config)
    assert replace(outline, notes=()).notes == whole.notes
