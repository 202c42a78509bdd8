"""The steps of the Dockerfile, replayed without Docker in a clean virtual environment."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from server_process import server_process

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef-token"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def copied(folder: Path) -> Path:
    """Returns a folder with the paths that `.dockerignore` leaves to `COPY . /src`."""
    names = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def test_the_server_of_the_image_needs_tokens_and_is_no_root():
    given = instructions()
    entry = json.loads(next(rest for name, rest in given if name == "ENTRYPOINT"))
    assert entry[1:] == ["serve", "--host", "0.0.0.0"] and ("USER", "unistep") in given
    stages = [rest for name, rest in given if name == "FROM"]
    assert len(stages) == 2 and all(stage.startswith("python:3.11-slim") for stage in stages)


@pytest.mark.slow  # installs torch: minutes
def test_the_steps_of_the_image(tmp_path, record_property):
    source, place = copied(tmp_path / "src"), tmp_path / "opt"
    given = instructions()
    second = [i for i, (name, _) in enumerate(given) if name == "FROM"][1]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "UNISTEP_TOKENS")}
    for name, rest in given[:second]:
        if name == "RUN":
            command = rest.replace("python -m venv", f"{sys.executable} -m venv")
            command = command.replace("/opt/unistep", str(place)).replace("/src", str(source))
            command = re.sub(r"--index-url \S+ ", "", command)  # the nearest torch will do
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            if (
                done.returncode
                and "torch" in rest
                and re.search("No matching distribution|Connection|resolve", done.stderr)
            ):
                pytest.skip(f"torch cannot be installed: {done.stderr[-200:]}")
            assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
    size = sum(path.lstat().st_size for path in place.rglob("*"))

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    entry = json.loads(next(rest for name, rest in given if name == "ENTRYPOINT"))
    words = [entry[0].replace("/opt/unistep", str(place)), *entry[1:], "--port", str(port)]
    body = json.dumps({"n": 1}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    started = time.monotonic()
    with server_process(words, env=environment | {"UNISTEP_TOKENS": TOKEN}, cwd=tmp_path) as server:
        try:
            while True:
                assert server.poll() is None and time.monotonic() - started < 180, server.stderr.read()
                try:
                    request = Request(f"http://127.0.0.1:{port}/v1/images/generations", body, headers)
                    with urlopen(request, timeout=60) as answer:
                        assert len(json.load(answer)["data"]) == 1
                    break
                except ConnectionError:
                    time.sleep(0.1)
                except OSError as error:
                    if not isinstance(getattr(error, "reason", None), ConnectionError):
                        raise
                    time.sleep(0.1)
            seconds = time.monotonic() - started
            health = json.loads(next(rest for name, rest in given if name == "HEALTHCHECK").removeprefix("CMD "))
            health = [word.replace("/opt/unistep", str(place)).replace(":8000", f":{port}") for word in health]
            subprocess.run(health, check=True, env=environment, cwd=tmp_path, timeout=60)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    record_property("megabytes", size / 1e6)
    record_property("seconds", seconds)
    print(f"{size / 1e6:.0f} MB; {seconds:.1f} s from the command to the first image")
