"""Memory that is kept between operations."""

import ctypes
import platform

import pytest
import torch

from unistep.runtime import heap, precision


def test_glibc_keeps_what_is_freed():
    assert heap.keep_heap() is (platform.libc_ver()[0] == "glibc")


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert heap.keep_heap.__wrapped__() is False


def test_small_networks_and_those_of_other_devices_keep_nothing(monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(heap, "keep_heap", lambda: called.append(1))
    heap.keep_for(torch.nn.Linear(2, 2))
    monkeypatch.setattr(heap, "SMALL", 6)
    heap.keep_for(torch.nn.Linear(2, 2, device="meta"))
    heap.keep_for(torch.nn.Identity())
    assert called == [] and precision.SMALL > 6
    heap.keep_for(torch.nn.Linear(2, 2))
    heap.keep_for_bytes(5)
    assert called == [1]
    heap.keep_for_bytes(6)
    assert called == [1, 1]
