"""A model that is served: loaded, warmed, and described for clients."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unistep.core.denoiser import Denoiser, device_of
from unistep.errors import UserError
from unistep.formats.model import LoadedModel
from unistep.generation.generate import tile_size
from unistep.generation.plan import Plan, default_plan, make_plan
from unistep.serving.batch import Row, equal_tiles, make_rows, places_matter

_MOST_PLANS = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model under its name.

    Args:
        name: name by which clients ask for it.
        loaded: model, on its device, in eval mode.
        tiles: numbers of images at once that give the same bits, rising; the last is that of `unistep.sample`.
        by_place: whether an image must stand at its own place of a tile to keep its bits.
        created: time at which it was loaded, in seconds since 1970.
        plans: plans of requests by their options.
    """

    name: str
    loaded: LoadedModel
    tiles: tuple[int, ...]
    by_place: bool
    created: int = field(default_factory=lambda: int(time.time()))
    plans: dict[Any, Plan] = field(default_factory=dict, repr=False)

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser or consistency function."""
        return self.loaded.denoiser

    @property
    def tile(self) -> int:
        """Images that a batch holds at most."""
        return self.tiles[-1]

    def tile_of(self, count: int) -> int:
        """Returns the number of images at once by which `count` images are computed."""
        return next((tile for tile in self.tiles if tile >= count), self.tile)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.loaded.image_shape

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return device_of(self.loaded.denoiser)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional model."""
        return self.loaded.num_classes

    @property
    def class_names(self) -> list[str]:
        """Name of each class: those of the data, else numbers."""
        return list(self.loaded.info.class_names) or [str(number) for number in range(self.num_classes)]

    def plan(
        self,
        steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        solver: str | None = None,
    ) -> Plan:
        """Returns the plan of a request; one that was made before is kept, as most requests have the same.

        Raises:
            UserError: options that contradict each other or the model.
        """
        key = (steps, None if timesteps is None else (*timesteps,), None if sigmas is None else (*sigmas,), solver)
        found = self.plans.get(key)
        if found is None:
            found = make_plan(self.loaded.info, steps=steps, timesteps=timesteps, sigmas=sigmas, solver=solver)
            if len(self.plans) >= _MOST_PLANS:
                self.plans.clear()
            self.plans[key] = found
        return found

    def describe(self) -> dict[str, Any]:
        """Returns the model as `/v1/models` lists it."""
        info, (channels, height, width) = self.loaded.info, self.shape
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "unistep",
            "kind": info.kind,
            "channels": channels,
            "height": height,
            "width": width,
            "classes": self.class_names,
            "noise_levels": info.num_train_timesteps,
            "sigma_min": info.sigma_min,
            "sigma_max": info.sigma_max,
        }


def trial_plans(loaded: LoadedModel) -> list[Plan]:
    """Returns the plans at which it is tried what keeps the bits of an image."""
    few = default_plan(loaded.info, 2)
    return [few] if loaded.info.kind == "diffusion" else [default_plan(loaded.info), few]


def serve_model(name: str, loaded: LoadedModel, max_batch: int) -> ServedModel:
    """Returns a model that has made its first images, and is known to need its places or not.

    Args:
        name: name by which clients ask for it: letters, digits and . _ / -.
        loaded: model on its device.
        max_batch: images that are computed at once, at most.

    Raises:
        UserError: the name holds other characters.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a model", "use letters, digits and . _ / -", field="name")
    device = device_of(loaded.denoiser)
    plan, tile = default_plan(loaded.info), tile_size(loaded.image_shape, max_batch, device)
    label = 0 if loaded.num_classes else None
    make_rows(loaded.denoiser, plan, loaded.image_shape, [Row(1, 0, label)], tile=tile, device=device)
    trials = trial_plans(loaded)
    by_place = places_matter(loaded.denoiser, trials[0], loaded.image_shape, loaded.num_classes, tile, device)
    tiles: tuple[int, ...] = (tile,)
    if device.type == "cpu" and not by_place:
        tiles = equal_tiles(loaded.denoiser, trials, loaded.image_shape, loaded.num_classes, tile, device)
    return ServedModel(name, loaded, tiles, by_place)
