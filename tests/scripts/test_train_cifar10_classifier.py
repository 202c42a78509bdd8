"""The script that trains the CIFAR-10 classifier, on a handful of images."""

import pytest
import torch
import train_cifar10_classifier
from safetensors.torch import load_file

from unistep.data import ImageDataset
from unistep.metrics.features.cifar10_classifier import MEAN, CIFAR10Classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageDataset(images, torch.arange(40) % 10)


def test_an_epoch_has_every_image_once_and_the_next_its_mirror_image(dataset, monkeypatch):
    monkeypatch.setattr(train_cifar10_classifier, "MAX_SHIFT", 0)
    monkeypatch.setattr(train_cifar10_classifier, "CUTOUT", 0)
    batches = train_cifar10_classifier.Batches(dataset, 8, CPU, seed=0)
    assert batches.steps == 5
    seen = []
    for epoch in range(2):
        found = [((x + 1) * 127.5).round().to(torch.uint8) for x, _ in batches.epoch(epoch)]
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        known = {image.numpy().tobytes(): (i, way) for way in (0, 1) for i, image in enumerate(_turned(dataset, way))}
        seen.append(dict(known[image.contiguous().numpy().tobytes()] for image in torch.cat(found)))
    assert seen[0].keys() == seen[1].keys() == set(range(40))
    assert all(seen[0][i] != seen[1][i] for i in range(40)) and set(seen[0].values()) == {0, 1}


def _turned(dataset, way):
    return dataset.images.flip(-1) if way else dataset.images


def test_shifted_images_go_on_mirrored_and_are_cut_out(dataset):
    import torch.nn.functional as F

    padded = F.pad(dataset.images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    images, labels = next(train_cifar10_classifier.Batches(dataset, 40, CPU, seed=0).epoch(0))
    mean = torch.tensor(MEAN)[:, None, None]
    for image, label in zip(images, labels, strict=True):
        cut = (image == mean).all(dim=0)
        assert int(cut.sum()) == train_cifar10_classifier.CUTOUT**2
        pixels = ((image + 1) * 127.5).round().to(torch.uint8)
        crops = [
            crop
            for original in padded[dataset.labels == label]
            for whole in (original, original.flip(-1))
            for crop in whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        ]
        assert any(torch.equal(crop[:, ~cut], pixels[:, ~cut]) for crop in crops)


def test_a_training_writes_the_weights_of_the_accuracy_it_prints(dataset, tmp_path, monkeypatch, capsys):
    import numpy as np

    np.savez(tmp_path / "data.npz", arr_0=dataset.images.permute(0, 2, 3, 1).numpy(), arr_1=dataset.labels.numpy())
    output = tmp_path / "weights.safetensors"
    data = str(tmp_path / "data.npz")
    arguments = [data, data, "--output", str(output), "--epochs", "2", "--batch-size", "20", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["script", *arguments])
    train_cifar10_classifier.main()
    printed = capsys.readouterr().out
    state = load_file(output)
    assert {value.dtype for value in state.values()} == {torch.float16, torch.float32}
    assert output.stat().st_size < 5_000_000
    model = CIFAR10Classifier().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == [] and all(name.endswith("num_batches_tracked") for name in missing)
    accuracy = (model.predict(dataset.images) == dataset.labels).double().mean().item()
    assert f"test accuracy {accuracy:.2%} after 2 epochs" in printed


def test_the_time_gives_the_number_of_epochs(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(train_cifar10_classifier, "seconds_a_step", lambda batches, device, lr: 0.5)
    monkeypatch.setattr(train_cifar10_classifier, "open_dataset", lambda path: dataset)
    asked = []

    def train(batches, device, *, epochs, lr, seed):
        asked.append(epochs)
        return CIFAR10Classifier()

    monkeypatch.setattr(train_cifar10_classifier, "train", train)
    for minutes, expected in ((0.001, 1), (0.5, 29)):
        arguments = ["--output", str(tmp_path / "w"), "--minutes", str(minutes), "--batch-size", "20"]
        monkeypatch.setattr("sys.argv", ["script", "a", "b", *arguments])
        train_cifar10_classifier.main()
        assert asked.pop() == expected
