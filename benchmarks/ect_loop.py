"""The training loop of easy consistency tuning as its authors run it, in words of our own, for comparisons of speed.

The algorithm: Geng et al. 2024, "Consistency Models Made Easy" (arXiv 2406.14548); the loop: that of EDM, from which
theirs descends. What decides its speed is kept:

- weights, activations and products in fp32, TF32 off unless asked for, cuDNN's search for the fastest kernel on;
- images from a `DataLoader` with pinned memory, a worker, two batches ahead; converted to floats on the device;
- two passes of the network, the one of the lower level without gradient, for the whole batch as soon as one image has a
  lower level above 0; the same state of the random numbers before both, so that both drop the same units;
- the moments of the loss added up on the device in every step, read when a line is printed;
- a pass over every gradient that replaces what is not finite, RAdam with its defaults, and the average of the weights
  taken parameter by parameter.

The network is the one that it is compared with, so that the loops differ and nothing else. Several processes, of which
the published loop has at least one, are left out: that makes it a little faster than it is.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from unistep.core.parameterization import Preconditioned
from unistep.data import ImageDataset
from unistep.networks.layers import Dropout


class _Images(Dataset):
    """One image and its class at a time, as the published data set gives them."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.images = dataset.images.numpy()
        self.labels = None if dataset.labels is None else dataset.labels.numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return self.images[index].copy(), 0 if self.labels is None else int(self.labels[index])


class _Endless(Sampler):
    """A shuffled order without end."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.count, generator=generator).tolist()


class _PlainDropout(nn.Module):
    """Dropout of PyTorch, whose masks come from the device's own random state."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, generator: object) -> Tensor:
        return F.dropout(x, self.p, self.training)


def with_plain_dropout(network: nn.Module) -> nn.Module:
    """The network with PyTorch's dropout in place of this package's; its weights stay.

    Args:
        network: network, changed in place.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Dropout):
                setattr(parent, name, _PlainDropout(child.p))
    return network


class PublishedLoop:
    """Training state and the step of the published loop.

    Args:
        model: network with its scalings, which is trained in place.
        dataset: images.
        batch: number of images of a step.
        stage: number of the stage of the curriculum, from 0: the gap is divided by `q` in each.
        device: device of the training.
        rounds: number of forward and backward passes a step; more take less memory.
        lr: learning rate.
        ema: decay of the average.
        P_mean, P_std: mean and deviation of ln t.
        q, k, b: numbers of the gap between both levels.
        bf16: whether the passes run under autocast to bf16, which the published loop does not.
        workers: number of processes that load images.
    """

    def __init__(
        self,
        model: Preconditioned,
        dataset: ImageDataset,
        batch: int,
        stage: int,
        device: torch.device,
        *,
        rounds: int = 1,
        lr: float = 1e-4,
        ema: float = 0.9999,
        P_mean: float = -1.1,
        P_std: float = 2.0,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        bf16: bool = False,
        workers: int = 1,
    ) -> None:
        self.device, self.rounds, self.stage, self.beta, self.bf16 = device, rounds, stage, ema, bf16
        self.P_mean, self.P_std, self.q, self.k, self.b = P_mean, P_std, q, k, b
        with_plain_dropout(model)
        self.conditional = bool(getattr(model.network.config, "num_class_embeds", None))
        self.model = model.train().requires_grad_(True).to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.RAdam(self.model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8)
        self.loader = DataLoader(
            _Images(dataset),
            batch_size=batch // rounds,
            sampler=_Endless(len(dataset), 0),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=2 if workers else None,
        )
        self.images = iter(self.loader)
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)

    def step(self) -> None:
        """Makes a step; on a GPU it returns when all work is queued, but for one question of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.rounds):
            images, labels = next(self.images)
            x = images.to(self.device).to(torch.float32) / 127.5 - 1
            classes = labels.to(self.device) if self.conditional else None
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses = self.loss(x, classes)
            self._report(losses)
            (losses.mean() / self.rounds).backward()
        for p in self.model.parameters():
            if p.grad is not None:
                torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
        self.optimizer.step()
        with torch.no_grad():
            for average, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.copy_(p.detach().lerp(average, self.beta))

    def loss(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Loss of each image.

        Args:
            x: images in [-1, 1].
            labels: their classes; None for a network without classes.
        """
        t = (torch.randn(len(x), device=self.device) * self.P_std + self.P_mean).exp()
        noise = torch.randn_like(x)
        return self.loss_at(x, labels, t, noise)

    def loss_at(self, x: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """Loss of each image at given noise.

        Args:
            x: images in [-1, 1].
            labels: their classes; None for a network without classes.
            t: higher noise level of each image.
            noise: noise of unit variance.
        """
        r = self.lower(t)
        x_t, x_r = (x + level[:, None, None, None] * noise for level in (t, r))
        state = self._random_state()
        prediction = self.model(x_t, t, labels)
        target = x
        if r.max() > 0:  # the host waits for the device here
            self._set_random_state(state)
            with torch.no_grad():
                there = torch.nan_to_num(self.model(x_r, r, labels))
            mask = (r > 0)[:, None, None, None]
            target = mask * there + ~mask * x
        distance = (prediction - target).square().flatten(1).sum(1).sqrt()
        return distance / (t - r)

    def lower(self, t: Tensor) -> Tensor:
        """The lower noise level of each pair.

        Args:
            t: the higher ones.
        """
        gap = self.q ** -(self.stage + 1) * (1 + self.k * torch.sigmoid(-self.b * t))
        return (t * (1 - gap)).clamp(min=0)

    def close(self) -> None:
        """Ends the processes that load images."""
        del self.images, self.loader

    def _report(self, losses: Tensor) -> None:
        values = losses.detach().flatten().to(torch.float32)
        moments = torch.stack([torch.ones_like(values).sum(), values.sum(), values.square().sum()])
        self.moments.add_(moments.to(torch.float64))

    def _random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)
