"""What a row of the table is called."""

import dataclasses

import pytest

from unistep.objectives.methods import METHODS, method_name


def test_every_row_has_a_name_of_its_own():
    names = [method_name(row) for row in METHODS.values()]
    assert len(set(names)) == len(METHODS)
    for key, name in zip(METHODS, names, strict=True):
        assert name.lower().endswith(f"({key})")


def test_numbers_do_not_change_the_method_and_slots_do():
    ect = METHODS["ect"]
    assert method_name(dataclasses.replace(ect, P_mean=0.3, stages=4)) == method_name(ect)
    assert method_name(dataclasses.replace(ect, guidance=1.5)) == method_name(ect) + ", guidance 1.5"
    assert method_name(dataclasses.replace(ect, distance="l1")).startswith("consistency objective: mapping, ")


@pytest.mark.parametrize("model", ["mnist", "mnist-teacher"])
def test_the_models_that_ship_say_how_they_were_trained(model: str):
    from unistep.build import EMBEDDED, load_model

    assert load_model(EMBEDDED.parent / model).method in (
        method_name(dataclasses.replace(METHODS["ect"], guidance=1.5)),
        "EDM denoising",
    )
