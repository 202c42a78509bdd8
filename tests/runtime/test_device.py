import pytest
import torch

from unistep.errors import UserError
from unistep.runtime.device import pick_device


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): a machine with n."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [(None, 0, "cuda:0"), (None, 1, "cuda:1"), (None, 5, "cuda:1"), ("cuda", 1, "cuda:1"), ("cuda:0", 1, "cuda:0")]
    + [("cpu", 1, "cpu")],
)
def test_two_gpus(gpus, name, local_rank, expected):
    gpus(2)
    assert pick_device(name, local_rank) == torch.device(expected)


def test_no_gpu(gpus):
    gpus(0)
    assert pick_device(None, 1) == torch.device("cpu")
    with pytest.raises(UserError, match="`device` cuda: there is none, or torch was built without it; give another"):
        pick_device("cuda")


def test_a_number_too_high(gpus):
    gpus(2)
    with pytest.raises(UserError, match="`device` cuda:2: there are 2; give another"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "cpu:0:1"])
def test_unknown(gpus, name):
    gpus(2)
    with pytest.raises(UserError, match=f"`device` {name} is unknown; give cpu, cuda, cuda:1 or mps"):
        pick_device(name)
