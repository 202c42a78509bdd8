"""The visit's parts end by themselves, leave what they found, and pack it into few files."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu_visit
import pytest
import visit_parcels
import visit_processes

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_a_process_that_takes_too_long_is_ended_with_all_its_own(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('begun', flush=True); time.sleep(60)"
    slow = visit_processes.start("slow", visit_processes.python("-c", code), tmp_path, 2.0, {})
    failing = visit_processes.start("failing", visit_processes.python("-c", "raise SystemExit(3)"), tmp_path, 30.0, {})
    began = time.monotonic()
    visit_processes.wait([slow, failing])
    assert time.monotonic() - began < 20
    assert slow.verdict() == "stopped after 2 s" and slow.text() == "begun\n"
    assert failing.verdict() == "failed with 3"
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # the group is gone as soon as its dead are buried
            os.killpg(slow.process.pid, 0)
            time.sleep(0.1)


def test_a_folder_comes_back_from_its_parts(tmp_path):
    folder = tmp_path / "cache"
    (folder / "deep" / "er").mkdir(parents=True)
    noise = os.urandom(300_000)
    (folder / "deep" / "er" / "kernel.cubin").write_bytes(noise)
    (folder / "deep" / "text.py").write_text("x = 1\n" * 10_000)
    (folder / "held.lock").write_text("")
    parts = visit_parcels.pack_folder(folder, tmp_path / "out" / "cache", part_mib=0.1)
    assert [p.name for p in parts] == ["cache.00", "cache.01", "cache.02"]
    assert max(p.stat().st_size for p in parts) <= 0.1 * 2**20
    assert visit_parcels.unpack_folder(parts, tmp_path / "back") == 2
    assert (tmp_path / "back" / "deep" / "er" / "kernel.cubin").read_bytes() == noise
    assert not (tmp_path / "back" / "held.lock").exists()


def test_files_are_put_where_they_fit(tmp_path):
    files = []
    for name, size in (("a", 700), ("b", 600), ("c", 200), ("d", 2000), ("e", 100)):
        path = tmp_path / name
        path.write_bytes(bytes(size * 1024))
        files.append((path, f"folder/{name}"))
    left = visit_parcels.parcels(files, tmp_path, "trained", 2, mib=1.0)
    assert left == ["folder/d"]
    archives = sorted(tmp_path.glob("trained-*.tar"))
    assert [p.name for p in archives] == ["trained-0.tar", "trained-1.tar"]
    assert all(p.stat().st_size <= 2**20 for p in archives)
    names = [name for p in archives for name in tarfile.open(p).getnames()]
    assert sorted(names) == ["folder/a", "folder/b", "folder/c", "folder/e"]


def test_a_part_that_fails_ends_no_other(tmp_path, capsys):
    found = gpu_visit.Visit(tmp_path, tmp_path / "work", tmp_path / "cache", True, "no-such-recipe")
    (tmp_path / "work").mkdir()
    gpu_visit.measure(found, ["rates"], 100.0)
    job = found.start("broken", gpu_visit.python("-c", "raise ValueError('no luck')"), 30.0)
    gpu_visit.wait([job])
    found.note("broken", [job])
    values = json.loads((tmp_path / "visit.json").read_text())
    assert values["parts"]["rates"]["numbers"]["rates"]["rates"]["fp32"] > 0
    assert values["parts"]["broken"]["processes"]["broken"]["verdict"] == "failed with 1"
    assert "ValueError: no luck" in (tmp_path / "visit.txt").read_text()
    assert "===== rates" in (tmp_path / "visit.log").read_text()
    gpu_visit.measure(found, ["steps"], 0.0)
    assert "no time is left for steps" in capsys.readouterr().out


@pytest.mark.slow
def test_trainings_and_scripts_come_home(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('weights')")
    tiny = "--teacher.steps 4 --student.steps 4 --teacher.sample-every 0 --network.block-out-channels 8,8"
    jobs = [f"mnist-quick 1 {tiny} --network.attention-head-dim 8", f"{script} {{out}}/model.txt", "no-such-recipe 1"]
    command = [sys.executable, str(SCRIPTS / "gpu_visit.py"), "train", "--output", str(tmp_path / "out"), "--together"]
    command += [word for job in jobs for word in ("--job", job)]
    command += ["--deadline-s", "200", "--work", str(tmp_path / "work"), "--archives", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "trained-0.tar", "trained.txt"]
    names = tarfile.open(tmp_path / "out" / "trained-0.tar").getnames()
    assert "script/model.txt" in names and "logs/mnist-quick.log" in names
    assert any(name.startswith("mnist-quick/weights/") for name in names)
    text = (tmp_path / "out" / "trained.txt").read_text()
    assert "mnist-quick: done" in text and "no-such-recipe: failed" in text
