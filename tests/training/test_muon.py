"""Muon: against PyTorch's of matrices, against AdamW, and against the polynomial of its iteration.

Run as a script, weights are in parts among several processes.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from unistep.training.config import OptimizerConfig
from unistep.training.muon import flops_of, is_matrix, orthogonal
from unistep.training.optimizer import build_optimizer

CONFIG = OptimizerConfig("muon", lr=0.01, betas=(0.95, 0.99), weight_decay=0.1)


def steps(optimizer, parameters, *, count=4, seed=0):
    """Makes steps by gradients drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def drawn(*shape, seed=1):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40), number=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_iteration_maps_singular_values_by_its_polynomial(rows, columns, number, seed):
    matrices = torch.randn(number, rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / matrices.double().norm(dim=(-2, -1))[:, None]
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(matrices).double(), left * values[:, None] @ right, rtol=0, atol=2e-4)


def test_half_precision_is_enough():
    matrices = drawn(2, 64, 200).detach()
    whole, half = orthogonal(matrices), orthogonal(matrices, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert (whole - half.float()).norm() < 0.02 * whole.norm()


def test_products_are_counted():
    for shape in ((40, 90), (90, 40), (64, 3, 3, 8)):
        p = drawn(*shape)
        with FlopCounterMode(display=False) as counter:
            orthogonal(p.detach().reshape(1, shape[0], -1))
        assert flops_of(p) == counter.get_total_flops()


def test_singular_values_become_nearly_alike():
    values = torch.linalg.svdvals(orthogonal(drawn(2, 64, 200).detach()))
    assert values.min() > 0.65 and values.max() < 1.25


@pytest.mark.parametrize("shape", [(48, 48), (40, 120), (120, 40)])
def test_as_in_pytorch(shape):
    """PyTorch's iterates in bf16."""
    ours, theirs = drawn(*shape), drawn(*shape)
    before = ours.detach().clone()
    steps(build_optimizer(CONFIG, [ours]), [ours])
    other = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    steps(other, [theirs])
    moved, expected = ours.detach() - before, theirs.detach() - before
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_a_kernel_is_a_matrix_of_its_output_channels():
    kernel, matrix = drawn(48, 6, 3, 3), drawn(48, 54)
    matrix.data.copy_(kernel.data.reshape(48, 54))
    steps(build_optimizer(CONFIG, [kernel]), [kernel])
    steps(build_optimizer(CONFIG, [matrix]), [matrix])
    assert torch.equal(kernel.reshape(48, 54), matrix)


def test_steps_are_as_long_as_those_of_adamw():
    config = OptimizerConfig("muon", lr=0.01)
    for shape in ((64, 64), (32, 288), (288, 32)):
        p = drawn(*shape)
        before = p.detach().clone()
        steps(build_optimizer(config, [p]), [p], count=1)
        size = (p.detach() - before).square().mean().sqrt()
        assert 0.1 < size / 0.01 < 0.3, shape  # AdamW's are mostly of 0.2 to 0.4 lr


def test_the_rest_is_moved_as_by_adamw():
    shapes = ((64,), (3, 64, 3, 3), (64, 27), (10, 64), ())
    assert not any(is_matrix(torch.zeros(shape)) for shape in shapes)
    ours, theirs = [drawn(*shape) for shape in shapes], [drawn(*shape) for shape in shapes]
    beside = drawn(64, 64)
    beside.grad = torch.ones_like(beside)
    steps(build_optimizer(CONFIG, [beside, *ours]), ours)
    own = torch.optim.AdamW(theirs, lr=0.01, betas=(0.95, 0.99), weight_decay=0.1, foreach=True)
    steps(own, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_weights_decay_apart_from_the_averages():
    p = drawn(40, 40)
    before = p.detach().clone()
    optimizer = build_optimizer(CONFIG, [p])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * (1 - 0.01 * 0.1))


def test_without_a_gradient_nothing_moves():
    p, other = drawn(40, 40), drawn(40)
    before = p.detach().clone()
    optimizer = build_optimizer(CONFIG, [p, other])
    other.grad = torch.ones_like(other)
    optimizer.step()
    assert torch.equal(p, before) and p not in optimizer.state


def test_its_state_is_taken_up_again():
    whole = [drawn(40, 40), drawn(40)]
    steps(build_optimizer(CONFIG, whole), whole, count=1)
    first = build_optimizer(CONFIG, whole)
    steps(first, whole, count=2)
    parts = [nn.Parameter(p.detach().clone()) for p in whole]
    second = build_optimizer(CONFIG, parts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, parameters in ((first, whole), (second, parts)):
        steps(optimizer, parameters, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def move_parts() -> None:
    """Weights of which each process has a part, some of them none, move as whole ones."""
    Accelerator(cpu=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shapes = ((40, 50), (40, 50), (33, 4, 3, 3), (7,), (2,), (3, 40, 3, 3))
    whole = [drawn(*shape, seed=i) for i, shape in enumerate(shapes)]
    parts = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in whole]
    optimizers = [build_optimizer(CONFIG, whole), build_optimizer(CONFIG, parts)]
    for step in range(3):
        for i, (p, part) in enumerate(zip(whole, parts, strict=True)):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i))
            part.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    for p, part in zip(whole, parts, strict=True):
        assert isinstance(part.data, DTensor) and part.data.placements == (Shard(0),)
        torch.testing.assert_close(part.data.full_tensor(), p.data, rtol=1e-5, atol=1e-5)
    held = optimizers[1].state[parts[0]]["exp_avg"]
    assert held.to_local().shape == parts[0].data.to_local().shape


@pytest.mark.slow
def test_parts_of_weights_move_as_whole_ones():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from several import several

    several(3, move_parts)
