"""The choice between GPU and processor, with stand-ins for both, under Node."""

import json
import shutil
import subprocess

import pytest

from unistep.exporting.web.page import OWN

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")

_CODE = """
import { chosen, compared } from "RUNTIME";
const model = { channels: 1, height: 8, width: 8, classes: ["a"], sigma_max: 80, dtype: "DTYPE" }, opened = [];
const spend = (ms) => { const end = performance.now() + ms; while (performance.now() < end); };
const network = (ms, off, share = 1) => async (x, sigmas) => {
  spend(ms);
  return x.map((v, i) => v / (1 + sigmas[0] ** 2) + (i % 64 < 64 * share ? off / 127.5 : 0));
};
const kinds = { webgpu: () => GPU, wasm: (threads) => network(threads > 1 ? MANY : 6, 0) };
const open = async (kind, threads) => { opened.push(threads > 1 ? "threads" : kind); return kinds[kind](threads); };
const { kind, gpu } = await chosen(open, { gpu: HAS, threads: THREADS }, "KNOWN", model);
console.log(JSON.stringify({ kind, gpu, opened }));
"""


def choice(
    gpu: str, *, dtype: str = "fp32", has: str = "true", known: str = "", many: int = 0
) -> tuple[str, str, list[str]]:
    code = _CODE.replace("RUNTIME", (OWN / "runtime.js").as_uri())
    code = code.replace("THREADS", "4" if many else "1").replace("MANY", str(many))
    for name, text in {"GPU": gpu, "DTYPE": dtype, "HAS": has, "KNOWN": known}.items():
        code = code.replace(name, text)
    done = subprocess.run(
        ["node", "--input-type=module"], input=code, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return made["kind"], made["gpu"], made["opened"]


@pytest.mark.parametrize(
    ("gpu", "options", "kind", "text"),
    [
        ("network(0, 0)", {}, "webgpu", "right and faster"),
        ("network(20, 0)", {}, "wasm", "slower"),
        ("network(90, 0)", {}, "wasm", "slower"),
        ("network(0, 2)", {}, "wasm", "wrong"),
        ("network(0, 90, 0.1)", {}, "wasm", "wrong"),
        ("network(0, NaN)", {}, "wasm", "wrong"),
        ("network(0, 1.8)", {"dtype": "fp16"}, "webgpu", "right and faster"),
        ("network(0, 4)", {"dtype": "fp16"}, "wasm", "wrong"),
        ("(() => { throw new Error('no shader'); })()", {}, "wasm", "does not run the network: no shader"),
        ("async () => { throw new Error('lost'); }", {}, "wasm", "does not run the network: lost"),
    ],
)
def test_a_gpu_is_taken_where_it_is_right_and_faster(gpu, options, kind, text):
    found, why, opened = choice(gpu, **options)
    assert found == kind and why.startswith(text) and set(opened) == {"webgpu", "wasm"}


def test_what_was_found_is_not_tried_again():
    assert choice("network(0, 0)", known="webgpu") == ("webgpu", "known to be right and faster", ["webgpu"])
    assert choice("network(0, 0)", known="wasm") == ("wasm", "known to be wrong or slower", ["wasm"])
    assert choice("network(0, 0)", has="false", known="webgpu") == ("wasm", "there is none", ["wasm"])


def test_threads_are_taken_where_they_are_faster():
    none = {"has": "false"}
    assert choice("0", many=1, **none) == ("threads", "there is none", ["threads", "wasm"])
    assert choice("0", many=25, **none)[0] == "wasm"
    assert choice("0", many=25, known="threads", **none) == ("threads", "there is none", ["threads"])
    assert choice("0", many=1, known="wasm", **none) == ("wasm", "there is none", ["wasm"])
