import pytest
import torch

from unistep.core.philox import philox4x32, uniforms

ONES = 0xFFFFFFFF


def words(values):
    return tuple(torch.tensor([value]) for value in values)


# The known answers that are published with Random123 (kat_vectors, philox 4 32 10).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox4x32(words(counter), words(key))) == expected


def test_the_largest_word_is_less_than_one():
    assert uniforms(torch.tensor([0, ONES])).tolist() == [0.0, 1 - 2.0**-24]


def test_counters_are_not_changed():
    counter = words((1, 2, 3, 4))
    philox4x32(counter, words((5, 6)))
    assert [int(word) for word in counter] == [1, 2, 3, 4]
