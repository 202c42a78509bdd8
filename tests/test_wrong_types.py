"""What is given from Python and is of no type that can be meant is one line, and no traceback."""

import subprocess
import sys

# In a process of its own: the tests of this one check annotations, which the functions must not rely on.
SCRIPT = """
import numpy as np, os, torch, unistep
from unistep.errors import UserError

digit = torch.zeros(1, 28, 28, dtype=torch.uint8)
calls = {
    "reference": lambda v: unistep.evaluate(num_images=20, reference=v, progress=False),
    "samples": lambda v: unistep.evaluate(v, reference="mnist-test", metrics=["kd"], num_images=2, progress=False),
    "image": lambda v: unistep.edit(None, v, "inpaint", mask="lower", progress=False),
    "mask": lambda v: unistep.edit(None, digit, "inpaint", mask=v, progress=False),
    "images": lambda v: unistep.search(task="inpaint", mask="lower", images=v, num_images=20, progress=False),
    "reference of a search": lambda v: unistep.search(reference=v, num_images=20, progress=False),
    "path": unistep.open_dataset,
    "data": lambda v: unistep.train("mnist-quick", data=v, output="run"),
    "source of a packing": lambda v: unistep.pack_dataset(v, "packed"),
    "place of a packing": lambda v: unistep.pack_dataset("no.zip", v),
    "size of a packing": lambda v: unistep.pack_dataset("no.zip", "packed", max_part_mb=v),
    "dataset": unistep.fetch_dataset,
    "folder of runs": unistep.runs,
    "runs": lambda v: unistep.report(v, output="page.html"),
    "page": lambda v: unistep.report("no-run", output=v),
    "recipe": lambda v: unistep.train(v, data="no.zip"),
    "output": lambda v: unistep.train("mnist-quick", data="no.zip", output=v),
    "resume": lambda v: unistep.train(resume=v),
    "teacher": lambda v: unistep.train("mnist-quick", data="no.zip", teacher=v),
}
wrong = [5, True, float("nan"), b"x", len, {1: 2}, [None], "x" * 5000, "\\0", np.zeros((2, 4))]
wrong += [torch.zeros(2, 1, 28, 28)]
for name, call in calls.items():
    for value in wrong:
        try:
            call(value)
            said = "nothing"
        except UserError as error:
            said = "" if str(error).isprintable() and len(str(error)) < 1600 else repr(str(error))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if said or os.listdir():
            print(name, repr(value)[:30], said[:200], os.listdir())
"""


def test_wrong_types_are_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
