#!/usr/bin/env python3
"""Train the MNIST classifier that unistep's digit metrics use, and write its weights.

    python scripts/train_mnist_classifier.py [--output FILE] [--seed 0] [--epochs 12] [--threads 2]

Adam with a one-cycle learning rate on randomly rotated, scaled and shifted digits, in bf16 on the CPU. Prints the test
accuracy and the sha256 of the file; the digest belongs in `WEIGHTS_SHA256` of
`unistep.metrics.features.mnist_classifier`. About 5 minutes
on one core. The weights that ship were trained with `--threads 1`: sums in another order give slightly other weights.
"""

import argparse
import hashlib
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from unistep.data import open_dataset
from unistep.metrics.features import mnist_classifier as mnist

MAX_ROTATION = math.radians(12)
MAX_SCALE = 0.12
MAX_SHEAR = 0.15
MAX_SHIFT = 2.0  # pixels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random affine copies of images [B, 1, 28, 28] in [0, 1]; what lies outside the frame is black."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    angle, shear = uniform(MAX_ROTATION), uniform(MAX_SHEAR)
    scale_x, scale_y = 1 + uniform(MAX_SCALE), 1 + uniform(MAX_SCALE)
    # grid_sample's coordinates run from -1 to 1, so a pixel is 2/28 of them.
    shift_x, shift_y = uniform(MAX_SHIFT * 2 / 28), uniform(MAX_SHIFT * 2 / 28)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * scale_x, (shear - sin) * scale_y, shift_x, sin * scale_x, cos * scale_y, shift_y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(count, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(
    images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, lr: float, seed: int
) -> mnist.MNISTClassifier:
    """A classifier trained on uint8 images [N, 1, 28, 28] and int64 labels [N]."""
    torch.manual_seed(seed)  # the initial weights
    generator = torch.Generator().manual_seed(seed)
    model = mnist.MNISTClassifier().train()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing in torch's overloads)
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            index = order[step * batch_size : (step + 1) * batch_size]
            batch = augment(images[index].float() / 255, generator)
            with torch.autocast("cpu", torch.bfloat16):
                _, logits = model((2 * batch - 1).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the MNIST classifier of unistep's digit metrics.")
    parser.add_argument("--output", type=Path, default=Path(mnist.__file__).parents[1] / mnist.WEIGHTS_FILE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    train_set, test_set = open_dataset("mnist"), open_dataset("mnist-test")
    assert train_set.labels is not None and test_set.labels is not None
    start = time.perf_counter()
    model = train(
        train_set.images, train_set.labels, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed
    )
    seconds = time.perf_counter() - start
    accuracy = (model.predict(test_set.images) == test_set.labels).double().mean().item()

    # num_batches_tracked serves only BatchNorm without a momentum.
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    data = save(state)
    args.output.write_bytes(data)
    print(f"test accuracy {accuracy:.2%}, trained in {seconds:.0f} s")
    print(f"{args.output}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
