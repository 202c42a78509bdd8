"""Exporting, opening and sampling need no network: no Python and no native code opens a connection."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_RUN = """
    import sys
    from pathlib import Path

    EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")

    def forbid(event, arguments):
        if event in EVENTS and str(arguments[1])[:1] != "/":  # a socket of the file system is no network
            print("ASKED", event, arguments[1:], flush=True)

    sys.addaudithook(forbid)
    import unistep

    model, folder, to, dtype = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    path = folder / f"m{ {'onnx': '.onnx', 'openvino': '.xml'}.get(to, '.pt2') }"
    try:
        unistep.export(model, path, to=to, dtype=dtype, batches=[1, 2], progress=False)
    except unistep.UserError as error:
        assert "can be in int8" in str(error) or "is to keep" in str(error) or "C++ compiler" in str(error), error
        print("refused", error)
    else:
        opened = unistep.load(path, **({"trust_code": True} if path.suffix == ".pt2" else {}))
        images = unistep.sample(opened, num_images=2, progress=False)
        unistep.edit(opened, images, "inpaint", mask="lower", progress=False)
    print("done")
"""
FORMATS = [
    ("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8"),
    ("torch-export", "fp32"), ("aoti", "fp32"),
]  # fmt: skip


def traced(words: list[str], log: Path) -> list[str]:
    """The command under strace, where there is one that may trace."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True).returncode:
        return words
    return [strace, "-f", "-q", "-e", "trace=connect,sendto,sendmsg,sendmmsg,bind", "-o", str(log), *words]


@pytest.mark.parametrize(("to", "dtype"), FORMATS)
def test_no_connection_is_opened(saved, tmp_path, to, dtype):
    if to == "openvino":
        pytest.importorskip("nncf" if dtype == "int8" else "openvino")
    else:
        pytest.importorskip("onnxruntime")
    log = tmp_path / "calls"
    log.touch()
    words = [sys.executable, "-c", textwrap.dedent(_RUN), str(saved("consistency")), str(tmp_path), to, dtype]
    done = subprocess.run(traced(words, log), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done" and "ASKED" not in done.stdout
    asked = [line for line in log.read_text().splitlines() if "AF_INET" in line]
    assert asked == []


def test_a_connection_would_be_seen(tmp_path):
    """Of Python by the hook; of native code by strace, if it is there."""
    log = tmp_path / "calls"
    log.touch()
    hook = textwrap.dedent(_RUN).split("import unistep")[0]
    code = "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError:\n    pass\n"
    words = traced([sys.executable, "-c", hook + code], log)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert "ASKED socket.connect" in done.stdout
    assert len(words) == 3 or "AF_INET" in log.read_text()
