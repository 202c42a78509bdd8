"""Image i of `unistep sample` is the same to the last bit whatever the batch size and the number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unistep.cli.main import main

NUM_IMAGES = 70
# More steps than two would only repeat what the second does; 28 x 28 leaves odd widths inside the network.
VARIANTS = {
    "one-step": ["--steps", "1"],
    "two-step": ["--timesteps", "0,22"],
    "one-step-labels": ["--steps", "1", "--class-labels", "0,1,2"],
    "two-step-labels": ["--timesteps", "0,22", "--class-labels", "0,1,2"],
}


@pytest.fixture(scope="module")
def model(model_folder) -> Path:
    return model_folder(sample_size=28, block_out_channels=(32, 64), num_class_embeds=10)


def arguments(model: Path, variant: str, output: Path, batch_size: int) -> list[str]:
    count = ["--num-images", str(NUM_IMAGES), "--batch-size", str(batch_size)]
    return [str(model), *count, "--seed", "3", "--output", str(output), *VARIANTS[variant]]


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() == {"arr_0", "arr_1"}
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """The images of each variant, made one at a time."""
    folder = tmp_path_factory.mktemp("reference")
    for variant in VARIANTS:
        main(["sample", *arguments(model, variant, folder / f"{variant}.npz", batch_size=1)])
    return {variant: read(folder / f"{variant}.npz") for variant in VARIANTS}


def test_the_images_would_show_a_difference(reference):
    """Every image is another, and few pixels are clamped, where all roundings look alike."""
    for arrays in reference.values():
        images = arrays["arr_0"]
        assert images.shape == (NUM_IMAGES, 28, 28, 1)
        assert len({image.tobytes() for image in images}) == NUM_IMAGES
        assert np.mean((images == 0) | (images == 255)) < 0.5
    assert (reference["one-step"]["arr_0"] != reference["two-step"]["arr_0"]).any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_size", [7, 64])
def test_any_batch_size(model, reference, tmp_path, variant, batch_size):
    main(["sample", *arguments(model, variant, tmp_path / "images.npz", batch_size)])
    assert_same(reference[variant], read(tmp_path / "images.npz"))


@pytest.mark.slow
def test_two_processes(model, reference, tmp_path):
    runs = [arguments(model, variant, tmp_path / f"{variant}.npz", batch_size=7) for variant in VARIANTS]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    script = Path(__file__).with_name("sample_several.py")
    subprocess.run(
        [*launch, "--nproc_per_node", "2", str(script), str(tmp_path / "runs.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    for variant in VARIANTS:
        assert_same(reference[variant], read(tmp_path / f"{variant}.npz"))


def test_a_part_of_a_run_is_the_run_cut_short(model, reference, tmp_path):
    short = arguments(model, "two-step", tmp_path / "images.npz", batch_size=64)
    short[short.index("--num-images") + 1] = "5"
    main(["sample", *short])
    for name, array in read(tmp_path / "images.npz").items():
        np.testing.assert_array_equal(reference["two-step"][name][:5], array)
