"""Features are computed once, kept whole, and found again by what they are features of."""

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.features.extract import NETWORK_BATCH, extract, features_of
from unistep.metrics.features.store import BLOCK
from unistep.metrics.sources import DataSource

COUNT = 2 * BLOCK + 100


@pytest.fixture
def source(pictures):
    return DataSource(pictures(COUNT), "pictures")


def test_all_features_in_order(source, linear, tmp_path):
    found = extract(source, linear, ["pool", "spatial"], tmp_path)
    assert found.keys() == {"pool", "spatial"}
    for kind, stored in found.items():
        expected = source.pixels.flatten(1).float() / 255 @ linear.weights[kind] / 8
        assert torch.allclose(stored.all(), expected, atol=1e-6)
        assert [len(block) for block in stored.blocks()] == [BLOCK, BLOCK, 100]
    assert max(linear.seen) == NETWORK_BATCH and sum(linear.seen) == COUNT


def test_nothing_is_computed_twice(source, linear, tmp_path):
    first = extract(source, linear, ["pool"], tmp_path)["pool"].all()
    linear.seen.clear()
    again = extract(DataSource(source.pixels.clone(), "elsewhere"), linear, ["pool"], tmp_path)["pool"].all()
    assert torch.equal(first, again) and linear.seen == []
    extract(source, linear, ["pool", "probabilities"], tmp_path)
    assert sum(linear.seen) == COUNT  # for the kind that was not there


@pytest.mark.parametrize("change", ["pixel", "weights", "kind"])
def test_what_is_other_is_computed(source, linear, tmp_path, change):
    extract(source, linear, ["pool"], tmp_path)
    linear.seen.clear()
    if change == "pixel":
        source.pixels[COUNT - 1, 0, 0, 0] ^= 1
        source = DataSource(source.pixels, "pictures")
    other = type(linear)(64, digest="other") if change == "weights" else linear
    extract(source, other, ["spatial" if change == "kind" else "pool"], tmp_path)
    assert sum(other.seen) == COUNT


def broken_file(folder):
    path = sorted(folder.rglob("*.npy"))[1]
    return path, path.read_bytes()


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "other shape", "other type", "objects"])
def test_a_damaged_file_is_made_again(source, linear, tmp_path, damage):
    whole = extract(source, linear, ["pool"], tmp_path)["pool"].all()
    path, content = broken_file(tmp_path)
    if damage == "gone":
        path.unlink()
    elif damage in ("cut", "empty"):
        path.write_bytes(content[: 100 * (damage == "cut")])
    else:
        values = {"other shape": np.zeros((3, 6), np.float32), "other type": np.zeros((BLOCK, 6))}
        np.save(path, values.get(damage, np.array([object()] * 5)), allow_pickle=True)
    linear.seen.clear()
    assert torch.equal(extract(source, linear, ["pool"], tmp_path)["pool"].all(), whole)
    assert sum(linear.seen) == BLOCK


def test_what_was_broken_off_goes_on(source, linear, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done >= 2 * BLOCK:
            raise Stop

    with pytest.raises(Stop):
        extract(source, linear, ["pool"], tmp_path, on_done=stop)
    assert sum(linear.seen) == 2 * BLOCK
    done: list[int] = []
    found = extract(source, linear, ["pool"], tmp_path, on_done=done.append)["pool"].all()
    assert sum(linear.seen) == BLOCK + COUNT  # the second file was not written yet
    assert done[0] == BLOCK + NETWORK_BATCH and done[-1] == COUNT
    assert torch.equal(found, extract(source, linear, ["pool"], tmp_path / "whole")["pool"].all())
    assert not list(tmp_path.rglob("*.tmp"))


def test_features_that_are_no_numbers(source, linear, tmp_path):
    linear.weights["pool"][:, 2] = torch.nan
    with pytest.raises(UserError, match="pictures: the pool features of image 0 by linear are not finite"):
        extract(source, linear, ["pool"], tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_the_image_with_bad_features_is_named(pictures, linear):
    broken = type(linear)(64)
    broken.weights["pool"] = torch.zeros(64, 6)

    def network(images, kinds):
        found = broken(images, kinds)
        found["pool"][images[:, 0, 0, 0] == 77] = torch.inf
        return found

    network.info = broken.info  # pyright: ignore[reportFunctionMemberAccess]
    images = pictures(200).clamp(max=76)
    images[130, 0, 0, 0] = 77
    with pytest.raises(UserError, match="image 1130 "):
        features_of(images, network, ["pool"], "pictures", 1000)  # pyright: ignore[reportArgumentType]


def test_a_place_that_cannot_be_written(source, linear, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file.*`feature_cache`"):
        extract(source, linear, ["pool"], tmp_path / "file")
