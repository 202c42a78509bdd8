from hypothesis import given
from hypothesis import strategies as st

from unistep.prepared.sensitivity import fewest, most_sensitive

ERRORS = {"a": 0.1, "b": 3.0, "c": 0.0, "d": 1.0}


def error_of(kept):
    return sum(value for name, value in ERRORS.items() if name not in kept)


def test_operations_are_tried_alone():
    done = []
    names = most_sensitive(list(ERRORS), error_of, lambda *counts: done.append(counts))
    assert names == ["b", "d", "a", "c"] and done == [(1, 4), (2, 4), (3, 4), (4, 4)]


@given(st.integers(0, 40), st.integers(0, 41))
def test_as_few_as_it_takes(count, needed):
    asked = []

    def enough(kept):
        asked.append(len(kept))
        return len(kept) >= needed

    names = [str(i) for i in range(count)]
    assert fewest(names, enough) == min(needed, count)
    assert len(asked) <= count.bit_length()
