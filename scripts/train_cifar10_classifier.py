#!/usr/bin/env python3
"""Train the CIFAR-10 classifier that unistep's agreement uses, and write its weights.

    python scripts/train_cifar10_classifier.py TRAIN TEST [--minutes 1] [--output FILE]

TRAIN and TEST are any data set that unistep opens: the 50,000 and the 10,000 images with their labels. Nesterov's SGD
with a one-cycle learning rate, label smoothing and averaged weights; images are shifted, mirrored and cut out on the
device, where all of them stay. bf16, on a GPU where there is one. The number of epochs is what fits into --minutes, by
the measured speed; --epochs sets it. Prints the test accuracy of the weights as they are written (convolutions in fp16,
4.6 MB) and their sha256; the digest belongs in `WEIGHTS_SHA256` of `unistep.metrics.features.cifar10_classifier`. The
weights that ship were trained with --minutes 1.2 on an H100 that other trainings shared: 109 epochs in 76 s.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from unistep.data import ImageDataset, open_dataset
from unistep.metrics.features import cifar10_classifier as cifar10
from unistep.metrics.features.cifar10_classifier import MEAN, SIZE, CIFAR10Classifier

MAX_SHIFT = 4  # pixels; the image goes on mirrored at its edges
CUTOUT = 8  # pixels
MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.9, 5e-4, 0.1
LR = 0.4  # at batches of 512
WARMUP = 0.2  # of the steps
AVERAGED, AVERAGE_EVERY = 0.02, 5  # of the steps; steps


class Batches:
    """Augmented batches of images that stay on a device.

    Args:
        dataset: images and labels.
        batch_size: number of images of a batch.
        device: device of images, labels and random numbers.
        seed: seed of order and augmentation.
    """

    def __init__(self, dataset: ImageDataset, batch_size: int, device: torch.device, seed: int) -> None:
        assert dataset.labels is not None
        # A pixel's colours side by side: the crop is then one look-up, and its result is channels_last.
        self._images = dataset.images.to(device).permute(0, 2, 3, 1).contiguous()
        self._labels = dataset.labels.to(device)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device, self._batch_size = device, batch_size
        self._mirrored = self._random(2, len(self._images)).bool()
        self._mean = torch.tensor(MEAN, device=device)
        self.steps = len(self._images) // batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, 32, 32] in [-1, 1] and labels [B], every image at most once; the rest is dropped."""
        order = torch.randperm(len(self._images), generator=self._generator, device=self._device)
        # Every other epoch mirrors the other images (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").
        mirrored = self._mirrored ^ bool(number % 2)
        for index in order[: self.steps * self._batch_size].split(self._batch_size):
            yield self._augmented(index, mirrored[index]), self._labels[index]

    def _random(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self._generator, device=self._device)

    def _augmented(self, index: Tensor, mirrored: Tensor) -> Tensor:
        place = torch.arange(SIZE, device=self._device)
        x = torch.where(mirrored[:, None], SIZE - 1 - place, place)
        y = place.expand(len(index), -1)
        down, right = ((self._random(2 * MAX_SHIFT + 1, len(index)) - MAX_SHIFT)[:, None] for _ in range(2))
        rows, columns = ((SIZE - 1 - (SIZE - 1 - (t + s).abs()).abs()) for t, s in ((y, down), (x, right)))
        images = self._images[index[:, None, None], rows[:, :, None], columns[:, None, :]].float() / 127.5 - 1
        top, left = (self._random(SIZE - CUTOUT + 1, len(index))[:, None] for _ in range(2))
        inside_y, inside_x = ((place >= start) & (place < start + CUTOUT) for start in (top, left))
        cut = inside_y[:, :, None, None] & inside_x[:, None, :, None]
        return torch.where(cut, self._mean, images).permute(0, 3, 1, 2)


def train(
    batches: Batches, device: torch.device, *, epochs: int, lr: float, seed: int, most_steps: int | None = None
) -> CIFAR10Classifier:
    """A classifier with averaged weights, after `epochs` epochs or `most_steps` steps of them."""
    torch.manual_seed(seed)  # the initial weights
    model = CIFAR10Classifier().train()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing in torch's overloads)
    model.to(device)
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr, MOMENTUM, nesterov=True, fused=device.type == "cuda")
    total = epochs * batches.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=total, pct_start=WARMUP, anneal_strategy="linear", cycle_momentum=False
    )
    current = [v for v in model.state_dict().values() if v.is_floating_point()]
    averaged = [v.clone() for v in current]
    share = min(1.0, AVERAGE_EVERY / (AVERAGED * total))
    start, step = time.perf_counter(), 0
    for epoch in range(epochs):
        losses = torch.zeros((), device=device)
        for images, labels in batches.epoch(epoch):
            with torch.autocast(device.type, torch.bfloat16):
                _, logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += loss.detach()
            step += 1
            if step % AVERAGE_EVERY == 0:
                torch._foreach_lerp_(averaged, current, share)
            if step == most_steps:
                return model
        loss = losses.item() / batches.steps  # waits for the device
        print(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}  {time.perf_counter() - start:.1f} s", flush=True)
    torch._foreach_copy_(current, averaged)
    return model


def seconds_a_step(batches: Batches, device: torch.device, lr: float) -> float:
    """Seconds a step, of short trainings whose weights are thrown away."""
    few, more = (30, 130) if device.type == "cuda" else (1, 4)

    def timed(steps: int) -> float:
        start = time.perf_counter()
        model = train(batches, device, epochs=1000, lr=lr, seed=0, most_steps=steps)
        model.head.bias.sum().item()  # waits for the device
        return time.perf_counter() - start

    timed(few)  # the choice of kernels
    return max(timed(more) - timed(few), 1e-6) / (more - few)


def written(model: CIFAR10Classifier) -> dict[str, Tensor]:
    """The state as it is written: convolutions in fp16, the rest in fp32."""
    return {
        name: value.detach().cpu().to(torch.float16 if value.ndim == 4 else torch.float32).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")  # serves only BatchNorm without a momentum
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the CIFAR-10 classifier of unistep's agreement.")
    parser.add_argument("train", help="training images with labels: a data set as unistep opens it")
    parser.add_argument("test", help="test images with labels")
    parser.add_argument("--output", type=Path, default=Path(cifar10.__file__).parents[1] / cifar10.WEIGHTS_FILE)
    parser.add_argument("--minutes", type=float, default=1.0, help="time of the training, without reading the images")
    parser.add_argument("--epochs", type=int, help="number of epochs in place of the time")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=LR, help="at batches of 512; scaled with their size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True

    began = time.perf_counter()
    device = torch.device(args.device)
    train_set, test_set = open_dataset(args.train), open_dataset(args.test)
    assert test_set.labels is not None
    batches = Batches(train_set, args.batch_size, device, args.seed)
    print(f"{len(train_set):,} training images on {device}, {time.perf_counter() - began:.1f} s", flush=True)
    lr = args.lr * args.batch_size / 512
    start = time.perf_counter()
    epochs = args.epochs
    if epochs is None:
        a_step = seconds_a_step(batches, device, lr)
        left = 60 * args.minutes - (time.perf_counter() - start)
        epochs = max(1, int(left / (a_step * batches.steps)))
        print(f"{a_step * 1000:.1f} ms a step, {args.batch_size / a_step:,.0f} images/s: {epochs} epochs", flush=True)
        batches = Batches(train_set, args.batch_size, device, args.seed)
    model = train(batches, device, epochs=epochs, lr=lr, seed=args.seed).eval()
    seconds = time.perf_counter() - start
    state = written(model)
    model.load_state_dict(state, strict=False)
    accuracy = (model.predict(test_set.images) == test_set.labels).double().mean().item()

    data = save(state)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(data)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"test accuracy {accuracy:.2%} after {epochs} epochs, {seconds:.0f} s on {where}")
    print(f"{args.output}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
