"""Extraction of the features of a source's images, each once, by as many processes as there are."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.generation.collect import share
from unistep.metrics.features.info import Kind
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.store import StoredFeatures, stored_features
from unistep.metrics.sources import ImageSource
from unistep.runtime.processes import Processes

NETWORK_BATCH = 64


def features_of(
    images: Tensor, network: FeatureNetwork, kinds: Collection[Kind], name: str = "the images", first: int = 0
) -> dict[Kind, Tensor]:
    """Returns the features [N, D] of images of each kind, float32 on the CPU.

    The network sees batches of 64 from the first image on, so that the same images give the same features bit by bit.

    Args:
        images: uint8 [N, C, H, W].
        network: feature network.
        kinds: kinds of features that are wanted.
        name: name of the images in messages.
        first: number of the first image in messages.

    Raises:
        UserError: a feature is not finite, or the network does not take such images.
    """
    batches = [network(batch, kinds) for batch in images.split(NETWORK_BATCH)]
    found: dict[Kind, Tensor] = {kind: torch.cat([batch[kind] for batch in batches]) for kind in kinds}
    for kind, features in found.items():
        good = features.isfinite().all(dim=1)
        if not good.all():
            index = first + int((~good).nonzero()[0, 0])
            raise UserError(
                f"{name}: the {kind} features of image {index} by {network.info.name} are not finite; "
                "check the weights of the network"
            )
    return found


def extract(
    source: ImageSource,
    network: FeatureNetwork,
    kinds: Collection[Kind],
    root: Path,
    *,
    processes: Processes | None = None,
    on_done: Callable[[int], None] | None = None,
) -> dict[Kind, StoredFeatures]:
    """Extracts the features that are not kept yet, each process its share; returns once all are there.

    Args:
        source: source of the images.
        network: feature network.
        kinds: kinds of features that are wanted.
        root: folder of all features that are kept.
        processes: processes that share the work; None is this one alone.
        on_done: called with the number of images that are done, by this process's own count scaled to all.

    Returns:
        The kept features of each kind.

    Raises:
        UserError: an image or a feature cannot be had, or another process has ended early.
    """
    processes = processes or Processes()
    about = {"images": source.to_dict(), "features": network.info.name, "resize": network.info.resize}
    entries: dict[Kind, StoredFeatures] = {
        kind: stored_features(root, source.digest, source.count, network.info, kind, about | {"kind": kind})
        for kind in kinds
    }
    missing: dict[Kind, set[range]] = {kind: set(entry.missing()) for kind, entry in entries.items()}
    parts = sorted(set().union(*missing.values()), key=lambda part: part.start)
    processes.wait()  # nobody writes before all have looked
    done = source.count - sum(map(len, parts))
    first, end = share(len(parts), processes)
    for part in parts[first:end]:
        needed: list[Kind] = [kind for kind in kinds if part in missing[kind]]
        pieces: dict[Kind, list[Tensor]] = {kind: [] for kind in needed}
        for start in range(part.start, part.stop, source.batch):
            piece = range(start, min(start + source.batch, part.stop))
            found = features_of(source.images(piece), network, needed, source.name, piece.start)
            for kind, features in found.items():
                pieces[kind].append(features)
            done += len(piece) * processes.count
            if on_done:
                on_done(min(done, source.count))
        for kind in needed:
            entries[kind].write(part, torch.cat(pieces[kind]))
    processes.wait()
    return entries
