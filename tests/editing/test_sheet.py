"""The sheet shows what it says, where it says it."""

import numpy as np
import torch

from unistep.editing.sheet import Row, edit_sheet

CELL, GAP, HEADING = 168, 8, 26


def flat(level, side=8, channels=1):
    return torch.full((channels, side, side), level, dtype=torch.uint8)


def cell(sheet, column, row=0, caption=0):
    sheet = np.asarray(sheet.convert("RGB")).astype(int)
    left, top = GAP + column * (CELL + GAP), HEADING + row * (CELL + caption + GAP)
    return sheet[top : top + CELL, left : left + CELL]


def test_columns_in_their_order():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    row = Row(flat(10), flat(20), flat(30), mask, [flat(40), flat(50, channels=3)], ["a", "b"])
    sheet = edit_sheet([row, row])
    for i in range(2):
        for column, level in ((0, 10), (1, 20), (3, 40), (4, 50)):
            assert (cell(sheet, column, i, 18) == level).all()
        known = cell(sheet, 2, i, 18)
        assert (known[: CELL // 2] == 30).all()
        assert set(known[CELL // 2 :].flatten().tolist()) == {0xC0, 0xE4}  # chequered


def test_columns_that_nobody_has_are_left_out():
    sheet = edit_sheet([Row(None, flat(20), None, None, [flat(40)])])
    assert (cell(sheet, 0) == 20).all() and (cell(sheet, 1) == 40).all()
    assert sheet.size == (GAP + 2 * (CELL + GAP), HEADING + CELL + GAP)


def test_pictures_of_other_sizes():
    """Large ones are reduced, wide ones keep their proportions, and rows are as high as their highest."""
    wide = torch.full((1, 50, 400), 9, dtype=torch.uint8)
    sheet = edit_sheet([Row(None, wide, None, None, [flat(40, 4)]), Row(None, wide, None, None, [])])
    assert sheet.size == (GAP + 2 * (CELL + GAP), HEADING + CELL + GAP + 21 + GAP)
    assert (cell(sheet, 0)[:21] == 9).all() and (cell(sheet, 0)[22:] == 255).all()
