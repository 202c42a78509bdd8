"""`unistep.export_weights` and `init_from`: short trainings on several machines add up to one."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unistep
from unistep.cli.main import main
from unistep.errors import UserError
from unistep.formats.checkpoint import load_checkpoint
from unistep.training.trainer import Trainer
from unistep.workflows.export_weights import export_weights

TINY = {"block_out_channels": [8, 8], "attention_head_dim": 8, "dropout": 0.1}
SHORT = {"batch_size": 2, "checkpoint_every": 1000, "sample_every": 0, "log_every": 1, "ema_decays": [0.9, 0.5]}
STEPS = {"teacher": 3, "student": 8}

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


@pytest.fixture(scope="module")
def images(tmp_path_factory, data) -> str:
    return data().source


@pytest.fixture(scope="module")
def quick(images):
    """quick(output, recipe, **arguments): a recipe of a teacher and a student, made tiny."""

    def run(output: Path, recipe: str | None = "mnist-quick", **arguments):
        stages = {name: SHORT | {"steps": steps} for name, steps in STEPS.items()}
        usual = {"data": images, "network": TINY, "precision": "fp32", "progress": False} | stages
        return unistep.train(recipe, output=output, **(usual | arguments))

    return run


def up_after(step: int):
    """Takes the place of the clock of a trainer: the student's time is up after a step."""
    return lambda self: self.title == "student" and self.step == step


@pytest.fixture
def stop(monkeypatch):
    """stop(step): from then on the student's training is over after that step, as if the time were up."""
    clock = Trainer._time_is_up

    def after(step: int | None) -> None:
        monkeypatch.setattr(Trainer, "_time_is_up", clock if step is None else up_after(step))

    return after


@pytest.fixture(scope="module")
def first(quick, tmp_path_factory) -> Path:
    """A run whose student has made 5 of its 8 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_time_is_up", up_after(5))
        return quick(tmp_path_factory.mktemp("visits") / "first").folder


@pytest.fixture
def visit(first, tmp_path) -> Path:
    """Its weights."""
    return export_weights(first, tmp_path / "out", device="a card").path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rounded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: v.bfloat16().float() if v.dim() > 1 else v for name, v in state.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_weights_and_averages_travel(visit, first, quick, tmp_path, monkeypatch):
    """The new run has them, rounded; it counts its steps on, and its teacher is the model that it was."""
    seen = []
    step = Trainer.train_step

    def watch(self, number):
        seen.append((self.title, number))
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", watch)
    before = load_checkpoint(first / "student" / "checkpoints")
    run = quick(tmp_path / "second", init_from=visit)
    assert seen == [("student", 5), ("student", 6), ("student", 7)] and run.finished
    assert repr(run).endswith("teacher 3/3, student 8/8)")
    # As it was before the first of these steps.
    checkpoints = tmp_path / "second" / "student" / "checkpoints"
    (checkpoints / "step-00000008.pt").unlink()
    state = load_checkpoint(checkpoints)
    assert state["step"] == 5 and state["optimizer"] is None
    assert same(state["student"], rounded(before["student"]))
    assert list(state["ema"]) == ["0.9", "0.5"]
    assert all(same(state["ema"][decay], rounded(before["ema"][decay])) for decay in state["ema"])
    weights = "teacher/model/unet/diffusion_pytorch_model.safetensors"
    assert same(load_file(run.folder / weights), rounded(load_file(first / weights)))
    assert [point[0] for point in run.curves["student"]["lr"]] == [6, 7, 8]


def test_visits_add_up(visit, quick, stop, tmp_path, caplog):
    caplog.set_level(logging.INFO, "unistep")
    stop(7)
    second = quick(tmp_path / "second", init_from=visit)
    assert f"{second.folder} begins from {visit}, 1 visit before: student goes on after step 5" in caplog.text
    stop(None)
    again = export_weights(second.folder, tmp_path / "more", device="another", distance="FD 12.3")
    assert again.steps == {"teacher": 3, "student": 7}
    third = unistep.train(init_from=tmp_path / "more", output=tmp_path / "third", progress=False)
    found = export_weights(third.folder, tmp_path / "last")
    assert json.loads((tmp_path / "last" / "visits.json").read_text())["visits"] == list(found.visits)
    assert [(v["device"], v["distance"]) for v in found.visits[:2]] == [("a card", None), ("another", "FD 12.3")]
    counts = [{name: stage["images"] for name, stage in v["stages"].items()} for v in found.visits]
    assert counts == [{"teacher": 6, "student": 10}, {"teacher": 0, "student": 4}, {"teacher": 0, "student": 2}]
    assert [v["stages"]["student"]["step"] for v in found.visits] == [5, 7, 8]
    assert all(v["minutes"] >= 0 and re.match(r"\d{4}-\d\d-\d\dT", v["date"]) for v in found.visits)
    # Exported twice, a training stands once in the log.
    assert len(export_weights(third.folder, tmp_path / "last").visits) == 3


def test_a_run_that_began_so_is_a_run(visit, quick, stop, tmp_path):
    """Stopped and resumed it ends in the same bits; the same call goes on with it, a call without the weights not."""
    whole = quick(tmp_path / "whole", init_from=visit)
    stop(6)
    run = quick(tmp_path / "run", init_from=visit)
    assert not run.finished
    stop(None)
    assert quick(tmp_path / "run", init_from=visit).finished
    a, b = (files(r.folder / "student" / "model" / "unet") for r in (whole, run))
    assert a == b
    other = quick(tmp_path / "other", stages={"student": None})
    with pytest.raises(UserError, match=f"^{other.folder} holds a run that did not begin from {visit}; [^\n]*$"):
        quick(other.folder, init_from=visit)


def test_the_averages_alone(first, quick, stop, tmp_path):
    whole = export_weights(first, tmp_path / "whole")
    half = export_weights(first, tmp_path / "half", averages_only=True)
    assert half.num_bytes < 0.8 * whole.num_bytes
    stop(6)
    quick(tmp_path / "second", init_from=half.path)
    (tmp_path / "second" / "student" / "checkpoints" / "step-00000006.pt").unlink()
    state = load_checkpoint(tmp_path / "second" / "student" / "checkpoints")
    assert same(state["student"], state["ema"]["0.9"])


def test_a_teacher_that_is_the_newest(quick, tmp_path):
    """Finished or not, it goes on; and a finished stage that others began from keeps its length."""
    run = quick(tmp_path / "first", stages={"student": None})
    export_weights(run.folder, tmp_path / "out")
    second = quick(tmp_path / "second", init_from=tmp_path / "out")
    assert repr(second).endswith("teacher 3/3, student 8/8)")
    longer = quick(tmp_path / "longer", init_from=tmp_path / "out", teacher=SHORT | {"steps": 5})
    assert repr(longer).endswith("teacher 5/5, student 8/8)")
    export_weights(longer.folder, tmp_path / "longer-out")
    third = quick(tmp_path / "third", init_from=tmp_path / "longer-out", teacher=SHORT | {"steps": 50})
    assert repr(third).endswith("teacher 5/5, student 8/8)")


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mnist-sct", "mnist-pd")]


@pytest.mark.parametrize("recipe", ["mnist-cd", *_SLOW])
def test_networks_beside_the_student_travel(quick, stop, tmp_path, recipe):
    """The target of consistency distillation, a learned weight, the teacher of a phase."""
    objective = {"mnist-pd": {"objective": {"start_scales": 4, "end_scales": 1}}}.get(recipe, {})
    student = SHORT | {"steps": 9} | objective
    stop(5)
    run = quick(tmp_path / "first", recipe, student=student)
    before = load_checkpoint(run.folder / "student" / "checkpoints")["objective"]
    export_weights(run.folder, tmp_path / "out")
    stop(None)
    assert before and quick(tmp_path / "second", recipe, student=student, init_from=tmp_path / "out").finished
    checkpoints = tmp_path / "second" / "student" / "checkpoints"
    (checkpoints / "step-00000009.pt").unlink()
    after = load_checkpoint(checkpoints)["objective"]
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[name], before[name], rtol=2**-8) for name in before)


def test_the_last_evaluation_is_the_distance(first, tmp_path):
    run = shutil.copytree(first, tmp_path / "run")
    log = run / "student" / "metrics.jsonl"
    lines = [
        {"step": 5, "KD": 3.0, "KD/low": 2, "KD/high": 4},
        {"step": 7, "KD": 2.5, "KD/low": 2},
        {"step": 8, "loss": 1},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    assert export_weights(run, tmp_path / "out").visits[-1]["distance"] == "KD 2.5 at step 7"


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": TINY | {"block_out_channels": [16, 8]}},
            r"stage teacher has block_out_channels \[8, 8\], the run's \[16",
        ),
        ({"network": TINY | {"norm_num_groups": 4}}, "stage teacher has norm_num_groups 8, the run's 4"),
        ({"use_labels": False}, "stage teacher has num_class_embeds 3, the run's none"),
        (
            {"student": SHORT | {"ema_decays": [0.8]}},
            r"stage student has no ema 0\.8; its `student.ema_decays` are 0\.9, 0\.5",
        ),
        (
            {"student": SHORT | {"method": "ict"}},
            "stage number 2 is student of method ect, the run's student of method ict",
        ),
        ({"stages": {"student": None}}, "stage number 2 is student of method ect, the run's none"),
    ],
)
def test_another_run_is_refused(visit, quick, tmp_path, changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        quick(tmp_path / "second", init_from=visit, **changes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def changed_index(change):
    def damage(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return damage


def other_tensor(folder: Path) -> None:
    """A part of another tensor whose digest is right."""
    import hashlib

    state = load_file(folder / "weights-1.safetensors")
    state = {name: value.fill_(float("inf")) for name, value in state.items()}
    save_file(state, folder / "weights-1.safetensors")
    content = (folder / "weights-1.safetensors").read_bytes()
    part = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed_index(lambda index: index["parts"][0].update(part))(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "index.json").unlink(), "index.json is missing"),
        (lambda out: (out / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda out: (out / "visits.json").unlink(), "visits.json is missing"),
        (lambda out: (out / "visits.json").write_text('{"visits": [{"date": 3}]}'), "its visit 0 has no date"),
        (lambda out: (out / "visits.json").write_text("[]"), "holds no list of visits"),
        (lambda out: (out / "weights-1.safetensors").unlink(), r"out lacks weights-1\.safetensors"),
        (changed_index(lambda i: i.update(stages=[])), "its stages are no list"),
        (changed_index(lambda i: i["stages"][0].update(name=3)), "its stage 0 is damaged"),
        (changed_index(lambda i: i["stages"][0].update(step=-3)), "its stage 0 is damaged"),
        (changed_index(lambda i: i["stages"][1].update(lr_factor=1e400)), "its stage 1 is damaged"),
        (changed_index(lambda i: i["stages"][1].update(more=1)), "its stage 1 is damaged"),
        (
            changed_index(lambda i: i["stages"][1].update(finished=True)),
            "all of its stages but the last must be finished",
        ),
        (changed_index(lambda i: i["tensors"].pop(next(iter(i["tensors"])))), "has another tensor"),
        (other_tensor, "has values that are not finite"),
    ],
)
def test_damage_is_one_line(visit, quick, tmp_path, damage, message):
    damage(visit)
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        quick(tmp_path / "second", init_from=visit)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_mistakes_of_the_call(visit, first, quick, tmp_path):
    for arguments, message in (
        ({"init_from": ""}, "`init_from` is empty"),
        ({"init_from": tmp_path / "absent"}, "absent is no folder"),
        ({"init_from": visit, "resume": first}, "`init_from` is for a new run"),
    ):
        with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
            unistep.train(**({"recipe": "mnist-quick"} if "resume" not in arguments else {}), **arguments)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    for call, message in (
        (lambda: export_weights(first, tmp_path / "taken"), "holds no exported weights"),
        (lambda: export_weights(tmp_path / "absent", tmp_path / "new"), "is not a run directory"),
        (lambda: export_weights(first, ""), "`out` is empty"),
        (lambda: export_weights(first, tmp_path / "new", 0.01), r"`max_part_mb` 0\.01 must be at least"),
        (lambda: quick(tmp_path / "taken", init_from=visit), "exists and is not a run directory"),
    ):
        with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
            call()
    assert files(tmp_path / "taken") == {"letter.txt": b"mine"} and not (tmp_path / "new").exists()


def test_the_commands(visit, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["train", "--init-from", "out", "--student.steps", "6", "--no-progress"])
    assert capsys.readouterr().out.startswith("done: runs/out/student/model\n")
    main(["weights", "export", "runs/out", "more", "--device", "a card", "--max-part-mb", "0.1"])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"more: \d+ files, 0\.\d MB, teacher at step 3, student at step 6", lines[0])
    assert "visit 2: " in lines[2] and "a card, 0.0 minutes, teacher 0 images, student 2 images" in lines[2]
    assert lines[-1] == "train on with: unistep train --init-from more"
    assert max(p.stat().st_size for p in Path("more").glob("*.safetensors")) <= 100_000
    with pytest.raises(SystemExit):
        main(["weights", "import"])
    assert "did you mean weights export?" in capsys.readouterr().err
