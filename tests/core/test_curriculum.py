import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.curriculum import ect_r, ema_decay_adaptive, num_scales_doubling, num_scales_progressive
from unistep.errors import UserError

SCHEDULES = json.loads((Path(__file__).parents[1] / "golden" / "schedules.json").read_text())
PROGRESSIVE = [row for row in SCHEDULES if row["config"]["scale_mode"] == "progressive"]
ADAPTIVE = [row for row in SCHEDULES if row["config"]["target_ema_mode"] == "adaptive"]
ECT = json.loads((Path(__file__).parents[1] / "golden" / "ect.json").read_text())


def test_the_golden_schedules_cover_what_is_tested_here():
    assert len(PROGRESSIVE) == 4 and len(ADAPTIVE) == 3
    assert all(len(row["steps"]) == len(row["scales"]) == len(row["target_ema"]) == 49 for row in SCHEDULES)


@pytest.mark.parametrize("row", PROGRESSIVE)
def test_golden_num_scales(row):
    config = row["config"]
    got = [
        num_scales_progressive(step, config["total_steps"], config["start_scales"], config["end_scales"])
        for step in row["steps"]
    ]
    assert got == row["scales"]


@pytest.mark.parametrize("row", ADAPTIVE)
def test_golden_ema_decay(row):
    config = row["config"]
    for step, expected in zip(row["steps"], row["target_ema"], strict=True):
        got = ema_decay_adaptive(
            step, config["total_steps"], config["start_scales"], config["end_scales"], config["start_ema"]
        )
        assert got == pytest.approx(expected, rel=1e-12, abs=0)


@given(st.integers(1, 10**6), st.integers(1, 20), st.integers(20, 300), st.floats(0.01, 0.999))
def test_progressive_runs_from_start_to_end(total, start, end, start_ema):
    steps = [0, total // 3, total // 2, total]
    scales = [num_scales_progressive(step, total, start, end) for step in steps]
    assert scales == sorted(scales)
    assert scales[0] == max(start, 2) and scales[-1] == end + 1
    decays = [ema_decay_adaptive(step, total, start, end, start_ema) for step in steps]
    assert decays == sorted(decays)
    # mu^(N-1) is the same at every step: the averaging time grows with the number of pairs.
    for n, decay in zip(scales, decays, strict=True):
        assert (n - 1) * math.log(decay) == pytest.approx(start * math.log(start_ema))


def test_no_averaging_stays_no_averaging():
    assert ema_decay_adaptive(0, 100, 2, 150, 0.0) == ema_decay_adaptive(99, 100, 2, 150, 0.0) == 0.0


def test_doubling_is_table_1_of_the_improved_techniques():
    # s0 = 10, s1 = 1280, K = 400,000: eight intervals of 50,000 steps.
    levels = [num_scales_doubling(step, 400_000, 10, 1280) for step in range(0, 400_000, 50_000)]
    assert levels == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert num_scales_doubling(49_999, 400_000, 10, 1280) == 11
    assert num_scales_doubling(399_999, 400_000, 10, 1280) == 1281


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 50), st.integers(0, 2000))
def test_doubling_stays_in_range(step, total, start, extra):
    n = num_scales_doubling(step, total, start, start + extra)
    assert start + 1 <= n <= start + extra + 1
    assert n <= num_scales_doubling(step + 1, total, start, start + extra)


def test_doubling_stops_at_the_end_that_is_no_power_of_two():
    # log2(floor(150/10)) + 1 = 4.9 intervals of floor(1000/4.9) = 203 steps.
    assert [num_scales_doubling(step, 1000, 10, 150) for step in (0, 202, 203, 406, 609, 812, 10**9)] == [
        11, 11, 21, 41, 81, 151, 151,
    ]  # fmt: skip


@pytest.mark.parametrize("row", ECT)
def test_golden_ect_mapping(golden, row):
    arrays, i = golden.tensors("ect.npz"), row["i"]
    r = ect_r(arrays[f"t_{i}"], row["stage"], row["q"], row["k"], row["b"], row["adj"])
    torch.testing.assert_close(r, arrays[f"r_{i}"], rtol=1e-6, atol=0)


@given(
    st.floats(1e-3, 100),
    st.integers(0, 4),
    st.sampled_from([2.0, 4.0, 256.0]),
    st.sampled_from(["sigmoid", "const"]),
)
def test_ect_pairs_are_ordered_and_close_up(t, stage, q, adj):
    tensor = torch.tensor([t], dtype=torch.float64)
    r, later = (float(ect_r(tensor, s, q, adj=adj)) for s in (stage, stage + 1))
    assert 0 <= r < t
    assert r < later or r == later == 0
    if adj == "const":
        assert r == pytest.approx(t * (1 - q ** -(stage + 1)), rel=1e-12)
    else:
        gap = (1 + 8 / (1 + math.exp(t))) / q ** (stage + 1)
        assert r == pytest.approx(max(t * (1 - gap), 0), rel=1e-9, abs=1e-12)


def test_ect_stages_end_before_the_pairs_collapse():
    t = torch.logspace(-3, 2, 2000)
    assert (ect_r(t, 22, q=2, adj="const") < t).all()  # 2^-23 is the last relative gap that fp32 has
    with pytest.raises(UserError, match="stage 2 with q=256 leaves no gap"):
        ect_r(t, 2, q=256)
