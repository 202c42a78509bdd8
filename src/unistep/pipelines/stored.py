"""A pipeline's way into files: `save_pretrained`, `push_to_hub`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.pipelines.opened import OpenedPipeline
from unistep.pipelines.parts import SHARED
from unistep.pipelines.saving import check_saving, push_name
from unistep.pipelines.unet import own_network


class StoredPipeline(OpenedPipeline):
    """The part of a pipeline that saves it."""

    def to_model(self) -> LoadedModel:
        """Returns the pipeline's network and noise range as a `LoadedModel` that shares its weights.

        Raises:
            UserError: the network is one of diffusers' that this package cannot compute.
        """
        network: Any = own_network(self.unet)
        path = Path("pipeline")
        return LoadedModel(precondition(network, self._info()), self._info(), network.config, path, dtype=self.dtype)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        *,
        card: str = "",
        repo_id: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> None:
        """Writes a model folder in diffusers' layout; the weights keep the precision of their blocks.

        Args:
            save_directory: the folder; an older model folder is replaced when the new one is complete.
            safe_serialization: must be true: weights are safetensors, never pickles.
            variant: word for the weights' file name, as "fp16"; None for the plain name.
            max_shard_size: largest size of a file, in bytes or as "5GB"; the weights must fit, for they are one file.
            push_to_hub: whether the folder is uploaded to the hub, which needs `repo_id`.
            use_flashpack: must be false.
            card: content of README.md; empty for a card without results.
            repo_id, token, private, commit_message, create_pr: arguments of `push_to_hub`.

        Raises:
            UserError: the place cannot be written to, or holds something else; the scheduler has settings that model
                folders cannot keep; an option that cannot be honoured.
        """
        from unistep.formats.model_folder.card import plain_card
        from unistep.formats.model_folder.folder import save_model

        if use_flashpack:
            raise UserError("`use_flashpack`: FlashPack files are not written; leave it out")
        check_saving(self.unet, safe_serialization, variant, max_shard_size)
        config = self.scheduler.config
        if config.s_noise != 1 or config.clip_denoised != self.info.clip:
            raise UserError(
                f"{save_directory}: model folders keep no s_noise {config.s_noise:g} and no other clip_denoised than "
                f"{self.info.clip}, not {config.clip_denoised}; set the scheduler to 1 and {self.info.clip}"
            )
        path = user_path(save_directory)
        _check_pull_request(create_pr)
        name = push_name(repo_id, path) if push_to_hub else None
        network: Any = own_network(self.unet)
        info = self._info()
        card = card or plain_card(path.name, info, network=network.config)
        save_model(path, network, info, card=card, dtype=self.dtype, variant=variant)
        if name is not None:
            from unistep.formats.hub.push import push_folder

            push_folder(path, name, token=token, private=private, commit_message=commit_message)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Saves the pipeline and uploads the folder to the hub.

        Args:
            repo_id: owner/name on the hub.
            commit_message: message of the commit.
            private: whether a new repository is private; None is the owner's default.
            token: access token with write permission; None is the stored one.
            create_pr: must be false: the files are committed to the branch main.
            safe_serialization: must be true.
            variant: word for the weights' file name, as "fp16"; None for the plain name.
            subfolder: must be None: a repository holds one model.

        Returns:
            The model's page.

        Raises:
            UserError: no network, no permission, or not a name of the hub; an option that cannot be honoured.
        """
        from tempfile import TemporaryDirectory

        from unistep.formats.hub.push import push_folder

        _check_pull_request(create_pr)
        if subfolder:
            raise UserError(f"`subfolder` {subfolder}: a repository holds one model; leave it out")
        with TemporaryDirectory() as folder:
            path = Path(folder) / repo_id.rsplit("/", 1)[-1]
            self.save_pretrained(path, safe_serialization, variant)
            return push_folder(path, repo_id, token=token, private=private, commit_message=commit_message)

    def _info(self) -> ModelInfo:
        """The facts about the model, with the noise range of the scheduler."""
        return replace(self.info, **{name: getattr(self.scheduler.config, name) for name in SHARED})


def _check_pull_request(create_pr: bool) -> None:
    if create_pr:
        raise UserError("`create_pr`: a push commits to the branch main; leave it out, or push to another `repo_id`")
