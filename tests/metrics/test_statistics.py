"""Statistics files: ours, and others' whose network nobody says."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.features.info import FeatureInfo
from unistep.metrics.moments import moments
from unistep.metrics.statistics import read_statistics, write_statistics

INFO = FeatureInfo("effnet", "EffNet", "abc", "clean", {"pool": 3, "spatial": 2})
INCEPTION = FeatureInfo("inception", "Inception", "def", "legacy-tensorflow", {"pool": 3, "spatial": 2})


@pytest.fixture
def two():
    random = torch.Generator().manual_seed(0)
    return {kind: moments(torch.randn(50, dim, generator=random)) for kind, dim in INFO.dims.items()}


def test_ours_come_back_whole(two, tmp_path):
    write_statistics(tmp_path / "s.npz", two, INFO, {"name": "cats"})
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None and not found.has_images
    for kind, expected in two.items():
        assert torch.equal(found.moments[kind].mean, expected.mean)
        assert torch.equal(found.moments[kind].covariance, expected.covariance)
        assert found.moments[kind].count == 50
    assert found.about["images"] == {"name": "cats"}
    found.check(INFO)
    with np.load(tmp_path / "s.npz") as file:  # as other tools read it
        np.testing.assert_array_equal(file["mu"], two["pool"].mean)


@pytest.mark.parametrize(
    "changes",
    [{"digest": "other"}, {"resize": "legacy-tensorflow"}, {"dims": {"pool": 3}}, {"name": "inception", "digest": "d"}],
)
def test_ours_of_another_network_are_refused(two, tmp_path, changes):
    write_statistics(tmp_path / "s.npz", two, INFO, {})
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    with pytest.raises(UserError, match=r"s\.npz was made with effnet with resize clean, not with.*do not compare"):
        found.check(dataclasses.replace(INFO, **changes))


@pytest.mark.parametrize("label", ["", "renamed"])
def test_the_name_does_not_count(two, tmp_path, label):
    write_statistics(tmp_path / "s.npz", two, INFO, {})
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    found.check(dataclasses.replace(INFO, label=label, name="moved"))


def test_published_files_are_inceptions(tmp_path):
    np.savez(tmp_path / "cifar10-32x32.npz", mu=np.zeros(3), sigma=np.eye(3))
    found = read_statistics(tmp_path / "cifar10-32x32.npz")
    assert found is not None and found.moments["pool"].count == 0 and "spatial" not in found.moments
    found.check(INCEPTION)
    with pytest.raises(UserError, match="names no feature network.*not effnet.*`features` inception"):
        found.check(INFO)
    with pytest.raises(UserError, match="its pool statistics have 3 dimensions, inception gives 2048"):
        found.check(dataclasses.replace(INCEPTION, dims={"pool": 2048}))


def test_openais_have_all_three(tmp_path):
    arrays = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.ones(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), **arrays)
    found = read_statistics(tmp_path / "a.npz")
    assert found is not None and found.has_images
    assert found.moments["spatial"].mean.tolist() == [1, 1]


def test_images_alone_are_no_statistics(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert read_statistics(tmp_path / "a.npz") is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "mu has the shape (3,) and sigma (2, 2)"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "mu has the shape (3, 1)"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "mu holds NaN"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.inf)}, "sigma holds NaN or infinite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative variances"),
        ({"mu": np.array(["a"]), "sigma": np.array([["a"]])}, "mu is <U1"),
        ({"mu": np.zeros(2)}, "cannot be read"),
        ({"mu": np.array([object()]), "sigma": np.eye(1)}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_statistics(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError) as caught:
        read_statistics(tmp_path / "bad.npz")
    message = str(caught.value)
    assert words in message and str(tmp_path / "bad.npz") in message and "\n" not in message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", pickle.dumps({"mu": 1}), b"x" * 1000])
def test_files_that_are_damaged(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match="bad.npz: its statistics cannot be read"):
        read_statistics(tmp_path / "bad.npz")


def test_a_file_cut_short(two, tmp_path):
    write_statistics(tmp_path / "s.npz", two, INFO, {})
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        read_statistics(tmp_path / "s.npz")
