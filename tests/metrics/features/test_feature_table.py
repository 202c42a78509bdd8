"""Feature networks by name."""

from pathlib import Path

import pytest

from unistep.errors import UserError
from unistep.metrics.features.table import FEATURES, default_features, open_features


@pytest.mark.parametrize(
    ("name", "label"), [("mnist", "MNIST"), ("pixels", "pixels@32"), ("effnet-lite0", "EffNetLite0@224")]
)
def test_networks_of_packages(name: str, label: str):
    info = open_features(name).info
    assert (info.name, info.label) == (name, label)


def test_options_reach_the_network(tmp_path: Path):
    assert open_features("effnet-lite0", resize="legacy-tensorflow").info.resize == "legacy-tensorflow"
    path = tmp_path / "weights"
    path.write_bytes(b"not what is published")
    for name in ("effnet-lite0", "inception", "dinov2"):
        with pytest.raises(UserError, match=str(path)):
            open_features(name, path=path)
    for name in ("effnet-lite0", "inception", "dinov2"):
        with pytest.raises(UserError, match="`resize` 'nearest' is unknown"):
            open_features(name, path=path, resize="nearest")
    with pytest.raises(UserError, match=f"{path}"):
        open_features(f"onnx:{path}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inceptoin", {}, "did you mean inception"),
        ("DINOv2", {}, "did you mean dinov2"),
        ("effnet", {}, "did you mean effnet-lite0"),
        ("xyz", {}, "choose inception, dinov2, effnet-lite0, mnist, cifar10, pixels, onnx:FILE"),
        ("nets/vgg.onnx", {}, "did you mean onnx:nets/vgg.onnx"),
        ("a\nb", {}, r"`features` a\\nb is unknown"),
        ("onnx:", {}, "give onnx:FILE"),
        ("onnx:f", {"path": "g"}, "`features_path` is not for onnx"),
        ("mnist:f", {}, "did you mean mnist"),
        ("mnist", {"path": "g"}, "`features_path` is not for mnist"),
        ("mnist", {"resize": "clean"}, "`resize` is not for mnist"),
        ("pixels", {"path": "g"}, "`features_path` is not for pixels"),
        ("pixels", {"resize": "clean"}, "`resize` is not for pixels"),
    ],
)
def test_mistakes_in_one_line(name: str, options: dict[str, str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        open_features(name, **options)
    assert "\n" not in str(caught.value)


def test_default():
    assert default_features(1, 28, 28) == default_features(1, 32, 32) == "mnist"
    for shape in ((3, 32, 32), (3, 28, 28), (1, 28, 32), (1, 64, 64), (3, 256, 256)):
        assert default_features(*shape) == "inception"
    assert {default_features(1, 28, 28), default_features(3, 8, 8)} < set(FEATURES)
