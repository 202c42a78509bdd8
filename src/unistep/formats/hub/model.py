"""Models of the Hugging Face hub."""

import os

import torch

from unistep.errors import UserError
from unistep.formats.hub import download
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.folder import load_model


def load_hub(
    name: str,
    device: torch.device | str = "cpu",
    *,
    variant: str | None = None,
    weights: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> LoadedModel:
    """Fetches a model folder from the hub into its cache, and opens it.

    Args:
        name: owner/name.
        device: device of the model.
        variant: variant of the weights, as "fp16".
        weights: network to choose if the files of the weights hold several.
        revision: branch, tag or commit; None is main.
        token: access token of private models; None is the stored one if there is any, True the stored one, which must
            be there, False none.
        cache_dir: folder of downloads; None is the hub's own.
        local_files_only: take the model from the cache, and download nothing.

    Raises:
        UserError: the model cannot be had, or is damaged.
    """
    try:
        folder = download.fetch_folder(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            variant=variant,
        )
    except UserError as error:
        raise UserError(f"there is no file or folder {name}; as a model of the hub: {error}") from None
    return load_model(folder, device, variant=variant, weights=weights)
