import os
import subprocess
import sys

import pytest
import torch

import unistep
from unistep.errors import UserError
from unistep.runtime.threads import arithmetic_threads


def test_the_number_holds_while_entered():
    before = torch.get_num_threads()
    with arithmetic_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with arithmetic_threads(None):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError), arithmetic_threads(3):
        raise ValueError
    assert torch.get_num_threads() == before


def test_a_training_has_its_threads(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "unistep.workflows.runs.loop.train_stages", lambda *_, **__: seen.append(torch.get_num_threads())
    )
    before = torch.get_num_threads()
    for count in (3, None):
        unistep.train("mnist-quick", output=tmp_path, threads=count)
    assert seen == [3, before] and torch.get_num_threads() == before


@pytest.mark.parametrize("count", [0, -1, 1.5, "many", 10**6])
def test_threads_that_are_none(count):
    with pytest.raises(UserError, match="^`threads` [^\n]*$"):
        unistep.train("mnist-quick", threads=count)


@pytest.mark.skipif(not hasattr(os, "nice"), reason="needs POSIX priorities")
@pytest.mark.parametrize(
    ("nice", "given", "expected"), [(0, None, None), (3, None, "PASSIVE"), (3, "ACTIVE", "ACTIVE")]
)
def test_threads_of_a_process_in_the_background_sleep(nice, given, expected):
    code = (
        f"import os; os.nice({nice}); from unistep.cli.main import main; main(['--version']); "
        "print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if os.nice(0) == 0:
        assert done.stdout.splitlines()[-1] == str(expected)
