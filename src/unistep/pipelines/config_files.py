"""Configs of pipelines and schedulers in files: read from folders and from the hub, and written."""

import os
from typing import Any, ClassVar

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.files import LAYOUT, whole_file
from unistep.formats.hub.address import is_hub_name
from unistep.formats.json_config import read_object, shown
from unistep.pipelines.options import LOADING, PUSHING, Download, check_options


class ConfigFiles:
    """The part of a pipeline or scheduler that reads and writes its config."""

    config_name: ClassVar[str]
    """Name of the file."""
    _config_folders: ClassVar[tuple[str, ...]] = ("",)
    """Folders below a given one in which the file may be; the last one on the hub."""

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **options: Any,
    ) -> Any:
        """Reads the config: the scheduler_config.json of a scheduler, the model_index.json of a pipeline.

        Args:
            pretrained_model_name_or_path: the file, a folder that holds it, a model folder, or owner/name on the hub.
            return_unused_kwargs: whether a dict of the options that are none of these comes with it.
            return_commit_hash: whether the commit on the hub comes with it; None for a file.
            options: `subfolder`, and the options of a download: `revision`, `token`, `cache_dir`, `local_files_only`.

        Returns:
            The settings by name, as they are in the file, or a tuple of them and what comes with them.

        Raises:
            UserError: there is no such file, or it is damaged; an option that cannot be honoured.
            TypeError: an option that does not exist.
        """
        download, unused = Download.of("load_config", options, LOADING, keep_unknown=return_unused_kwargs)
        name = os.fspath(pretrained_model_name_or_path)
        path, commit = user_path(name), None
        folders = (download.subfolder,) if download.subfolder else cls._config_folders
        if path.is_dir():
            places = [path / part / cls.config_name for part in folders]
            found = next((place for place in places if place.exists()), None)
            if found is None:
                raise UserError(f"{path} has no {' and no '.join(str(p.relative_to(path)) for p in places)}; {LAYOUT}")
            path = found
        elif not path.is_file():
            if not is_hub_name(name):
                raise UserError(f"{shown(name)} is no file or folder; {LAYOUT}")
            path, commit = download.config(name, f"{folders[-1]}/{cls.config_name}".lstrip("/"))
        results = [read_object(path, LAYOUT)]
        results += [unused] if return_unused_kwargs else []
        results += [commit] if return_commit_hash else []
        return tuple(results) if len(results) > 1 else results[0]

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """Writes the config into its file, which diffusers reads as well.

        Args:
            save_directory: folder of the file, which is made if there is none.
            push_to_hub: must be False: the hub holds whole models.
            options: options of a push.

        Raises:
            UserError: the file cannot be written; `push_to_hub`.
            TypeError: an option that does not exist.
        """
        check_options("save_config", options, PUSHING)
        if push_to_hub:
            raise UserError("`push_to_hub` is for whole models; call it of the pipeline")
        self.to_json_file(user_path(save_directory) / self.config_name)

    def to_json_string(self) -> str:
        """Returns the content of the file."""
        raise NotImplementedError

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes the content of the config's file to another; its folder is made if there is none.

        Raises:
            UserError: the file cannot be written.
        """
        path = user_path(json_file_path)
        try:
            with whole_file(path) as temporary:
                temporary.write_text(self.to_json_string(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
