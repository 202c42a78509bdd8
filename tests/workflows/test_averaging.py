"""`unistep.ema`: snapshots during training, and models with other averages after it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import unistep
from unistep.cli.main import main
from unistep.errors import UserError
from unistep.formats.snapshots import find_snapshots, write_snapshot
from unistep.training.power_average import PowerAverages
from unistep.training.trainer import Trainer
from unistep.workflows.ema import ema

TINY = {"block_out_channels": [8, 8], "attention_head_dim": 8}
SHORT = {"batch_size": 2, "sample_every": 0, "checkpoint_every": 4}
KEPT = {"steps": 8, "ema_lengths": [0.1, 0.2], "snapshot_every": 2}

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


@pytest.fixture(scope="module")
def quick(data):
    """quick(output, **arguments): a recipe of a teacher and a student, made tiny."""
    source = data().source

    def run(output: Path, recipe: str = "mnist-quick", **arguments) -> Path:
        stages = {"teacher": SHORT | {"steps": 2}, "student": SHORT | KEPT}
        usual = {"data": source, "network": TINY, "precision": "fp32", "progress": False} | stages
        return unistep.train(recipe, output=output, **(usual | arguments)).folder

    return run


@pytest.fixture(scope="module")
def run(quick, tmp_path_factory) -> Path:
    return quick(tmp_path_factory.mktemp("ema") / "run")


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"network.{name}": p for name, p in unistep.load(folder, device="cpu").denoiser.network.named_parameters()}


def snapshots(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "student/snapshots").iterdir())}


def test_a_run_keeps_snapshots(run):
    found = find_snapshots(run / "student/snapshots")
    assert [one.step for one in found] == [2, 4, 6, 8] and {one.lengths for one in found} == {("0.1", "0.2")}
    assert not (run / "teacher/snapshots").exists()


def test_a_run_that_was_killed_has_the_snapshots_of_one_that_was_not(run, copied, quick):
    before = snapshots(run)
    shutil.rmtree(copied / "student/model")
    (copied / "student/checkpoints/step-00000008.pt").unlink()
    for name in ("step-00000006.safetensors", "step-00000008.safetensors"):
        (copied / "student/snapshots" / name).write_bytes(b"of a step that was lost")
    unistep.train(resume=copied, progress=False)
    assert snapshots(copied) == before


def test_further_averages_leave_the_training_as_it_is(run, quick, tmp_path):
    without = quick(tmp_path / "without", student=SHORT | {"steps": 8})
    ours, theirs = (load_file(f / "student/model/unet/diffusion_pytorch_model.safetensors") for f in (run, without))
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert not (without / "student/snapshots").exists()


def test_an_average_that_was_kept_comes_back(run, tmp_path):
    made = ema(run, tmp_path / "model", length=0.2)
    stored = find_snapshots(run / "student/snapshots")[-1].average("0.2")
    found = weights(tmp_path / "model")
    assert (made.stage, made.step, made.length) == ("student", 8, 0.2) and made.tried[0].error < 1e-6
    assert found.keys() == stored.keys()
    assert all(torch.allclose(found[name], stored[name].float(), atol=1e-5) for name in stored)


def test_an_average_at_an_earlier_step(run, tmp_path):
    assert ema(run, tmp_path / "model", length=0.1, step=4).step == 4
    stored = find_snapshots(run / "student/snapshots")[1].average("0.1")
    found = weights(tmp_path / "model")
    assert all(torch.allclose(found[name], stored[name].float(), atol=1e-5) for name in stored)


def test_another_length_is_the_average_of_all_weights_of_the_training(run, quick, tmp_path):
    made = ema(run, tmp_path / "model", length=0.15)
    direct = quick(tmp_path / "direct", student=SHORT | KEPT | {"ema_lengths": [0.15]})
    exact = find_snapshots(direct / "student/snapshots")[-1].average("0.15")
    found, raw = weights(tmp_path / "model"), weights(run)
    name = max(exact, key=lambda name: (raw[name] - exact[name].float()).abs().max())
    moved = (raw[name] - exact[name].float()).abs().max()
    assert made.tried[0].error < 0.05
    assert (found[name] - exact[name].float()).abs().max() < 0.1 * moved


def test_of_several_lengths_the_best_is_written(quick, tmp_path):
    pytest.importorskip("matplotlib")
    run = quick(tmp_path / "run", data="mnist-test")
    plot = tmp_path / "lengths.png"
    more = {"num_images": 64, "plot": plot, "progress": False}
    made = ema(run, tmp_path / "model", length=[0.1, 0.15, 0.2], reference="mnist-test", **more)
    distances = {one.length: one.distance for one in made.tried}
    assert len(distances) == 3 and distances[made.length] == min(distances.values()) and plot.exists()
    one = ema(run, tmp_path / "alone", length=made.length)
    ours, theirs = weights(made.path), weights(one.path)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_on_the_command_line(run, tmp_path, capsys):
    main(["ema", str(run), str(tmp_path / "model"), "--length", "0.12"])
    assert "length 0.12 of student at step 8" in capsys.readouterr().out
    main(["inspect", str(tmp_path / "model")])


def test_a_training_that_went_back_has_no_snapshots_of_what_it_gave_up(quick, tmp_path, monkeypatch):
    written = Trainer._write_snapshot

    def spoiled(self):
        written(self)
        if self.step == 6 and not self.guard.rollbacks:
            with torch.no_grad():
                next(self.student.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_write_snapshot", spoiled)
    run = quick(tmp_path / "run", student=SHORT | KEPT | {"max_skipped": 1})
    steps = [one.step for one in find_snapshots(run / "student/snapshots")]
    assert steps == [2, 4, 6, 8]
    for one in find_snapshots(run / "student/snapshots"):
        assert all(value.isfinite().all() for value in one.average("0.1").values())


def test_phases_average_by_themselves(quick, tmp_path):
    """Progressive distillation begins a student anew in each phase: what comes before is another model's."""
    kept = {"steps": 6, "ema_lengths": [0.1, 0.2], "snapshot_every": 1, "objective": {"start_scales": 4}}
    run = quick(tmp_path / "run", recipe="mnist-pd", student=SHORT | kept)
    found = find_snapshots(run / "student/snapshots")
    assert len({one.begun for one in found}) > 1
    made = ema(run, tmp_path / "model", length=0.15)
    assert made.step == 6 and f"over {6 - found[-1].begun} steps" in (tmp_path / "model/README.md").read_text()


def test_steps_of_a_critic_and_skipped_ones_are_time_too(quick, tmp_path, monkeypatch):
    """Weights that stay as they are for a step are averaged for one: else the average would be of another length."""
    update, steps = PowerAverages.update, []

    def counted(self, module, step):
        steps.append(step)
        update(self, module, step)

    monkeypatch.setattr(PowerAverages, "update", counted)
    own = {"objective": {"student_steps": 2}, "ema_decays": [0.9]}
    run = quick(tmp_path / "run", recipe="mnist-dmd2", student=SHORT | KEPT | own)
    assert steps[-8:] == [*range(8)] and [one.step for one in find_snapshots(run / "student/snapshots")] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"length": []}, "`length` is empty"),
        ({"length": 0.5}, "`length` 0.5 must"),
        ({"length": [0.1, 0.2]}, "`length` several lengths are compared by their images; give a `reference`"),
        ({"length": 0.002}, "give an average whose profile differs by"),
        ({"stage": "pupil"}, "`stage` pupil: .* has the stages teacher, student"),
        ({"stage": "teacher"}, r"no snapshots of averages; train with `teacher.ema_lengths=\[0.05, 0.1\]`"),
        ({"step": 1}, "`step` 1: the snapshots of student are of the steps 2 to 8"),
        ({"step": 9}, "`step` 9"),
        ({"plot": "a.png"}, "`plot` is for several lengths"),
        ({"plot": "a.jpg", "length": [0.1, 0.2], "reference": "mnist-test"}, "give a file that ends in .png"),
    ],
)
def test_refused(run, tmp_path, options, problem):
    with pytest.raises(UserError, match=problem):
        ema(run, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_target_with_something_else_in_it_stays(run, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no"):
        ema(run, tmp_path / "notes")
    with pytest.raises(UserError, match="is or holds the source"):
        ema(run, run)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "other network", "folder"])
def test_damaged_snapshots_are_named(copied, tmp_path, damage):
    path = copied / "student/snapshots/step-00000004.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-100] ^= 0x40
        path.write_bytes(content)
    elif damage == "foreign":
        path.write_bytes(b"{}")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        module = nn.Linear(2, 2)
        write_snapshot(path.parent, 4, 0, {0.1: dict(module.named_parameters())})
    with pytest.raises(UserError) as caught:
        ema(copied, tmp_path / "model")
    assert "snapshots" in str(caught.value) and not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"ema_lengths": [0.0]}, r"ema_lengths` \[0.0\] must lie between 0.001 and 0.28"),
        ({"ema_lengths": [0.1, 0.1]}, r"ema_lengths` \[0.1, 0.1\] holds one twice"),
        ({"snapshot_every": 0}, "snapshot_every` 0 must be at least 1"),
    ],
)
def test_keys_out_of_range(quick, tmp_path, keys, problem):
    with pytest.raises(UserError, match=problem):
        quick(tmp_path / "run", student=SHORT | keys)
