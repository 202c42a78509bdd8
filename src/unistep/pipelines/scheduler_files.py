"""Schedulers made of configs and files, and written to them: diffusers' `ConfigMixin` and `SchedulerMixin`."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from unistep.errors import UserError
from unistep.formats.model_folder.network import DIFFUSERS_VERSION
from unistep.pipelines.config_files import ConfigFiles
from unistep.pipelines.frozen import SchedulerConfig, scheduler_config
from unistep.pipelines.options import Download, unknown_argument

_log = logging.getLogger("unistep")
_FIELDS = tuple(SchedulerConfig.__annotations__)
_OWN = "_unistep"
_OF_MODELS = {"noise_embedding": "noise_embedding", "clip": "clip_denoised"}  # entries of a model folder's file there


class SchedulerFiles(ConfigFiles):
    """The part of a scheduler that makes it of a config and writes its config."""

    config: SchedulerConfig
    config_name = "scheduler_config.json"
    _config_folders = ("", "scheduler")
    has_compatibles = True
    _compatibles: ClassVar[list[str]] = []

    @property
    def compatibles(self) -> list[type]:
        """Classes that take the same config."""
        return [type(self)]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """Makes a scheduler of another's `config`, or of the content of a scheduler_config.json.

        Args:
            config: settings by name, of this class or of diffusers'; entries that it has not are left out, which is
                logged.
            return_unused_kwargs: whether the scheduler comes with a dict of all that was left out.
            changes: settings that replace those of `config`.

        Returns:
            The scheduler, or (scheduler, unused).

        Raises:
            UserError: no config, or a value out of range.
            TypeError: a change of a setting that schedulers do not have.
        """
        if isinstance(config, str | os.PathLike):  # as diffusers took it once
            config = cls.load_config(config)
        if not isinstance(config, Mapping):
            raise UserError(f"a {type(config).__name__} is no config of a scheduler; give a dict of its settings")
        own = config.get(_OWN)
        # What another class of diffusers' had by default is no setting of this one.
        defaults = config.get("_use_default_values")
        given = {k: v for k, v in config.items() if not (isinstance(defaults, list) and k in defaults)}
        if isinstance(own, Mapping):
            given |= {name: own[entry] for entry, name in _OF_MODELS.items() if entry in own}
        known = (*_FIELDS, "noise_embedding")
        settings = {name: given[name] for name in known if given.get(name) is not None}
        # What begins with _ is no setting, and null asks for nothing.
        unused = {k: v for k, v in given.items() if k not in known and not k.startswith("_") and v is not None}
        if unused and not return_unused_kwargs:
            _log.warning("not used, for a %s has no such setting: %s", cls.__name__, ", ".join(sorted(unused)))
        unknown = [name for name in changes if name not in known]
        if unknown and not return_unused_kwargs:
            raise unknown_argument("from_config", unknown[0], known)
        settings |= {name: value for name, value in changes.items() if name in known}
        scheduler = cls(**scheduler_config(**settings))
        if return_unused_kwargs:
            return scheduler, unused | {name: changes[name] for name in unknown}
        return scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Makes a scheduler of a file.

        Args:
            pretrained_model_name_or_path: scheduler_config.json, a folder that holds one, a model folder, or owner/name
                on the hub.
            subfolder: folder of the file below that; "scheduler" in a model folder, which may be left out.
            return_unused_kwargs: whether the scheduler comes with a dict of all settings and options that are not used.
            options: options of `load_config`, and settings that replace those of the file.

        Returns:
            The scheduler, or (scheduler, unused).

        Raises:
            UserError: there is no such file, it is damaged, or a value is out of range.
            TypeError: an option that does not exist.
        """
        config, changes = cls.load_config(
            pretrained_model_name_or_path, return_unused_kwargs=True, subfolder=subfolder, **options
        )
        known = (*_FIELDS, "noise_embedding", *Download.__dataclass_fields__)
        if (unknown := [name for name in changes if name not in known]) and not return_unused_kwargs:
            raise unknown_argument("from_pretrained", unknown[0], known)
        try:
            return cls.from_config(config, return_unused_kwargs, **changes)
        except UserError as error:
            raise UserError(f"{pretrained_model_name_or_path}: {error}") from None

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Writes scheduler_config.json: another name of `save_config`."""
        self.save_config(save_directory, push_to_hub, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> None:
        """Refuses: the hub holds whole models.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"`repo_id` {repo_id}: a scheduler is pushed with its model; call `push_to_hub` of the pipeline"
        )

    def to_json_string(self) -> str:
        """Returns the content of scheduler_config.json."""
        entries = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION, **self.config}
        if embedding := entries.pop("noise_embedding", None):
            entries[_OWN] = {"noise_embedding": embedding}  # where model folders have it
        return type(self.config)(entries).to_json_string()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    if not TYPE_CHECKING:  # else no misspelt attribute would be found

        def __getattr__(self, name: str) -> Any:
            config = vars(self).get("config", {})
            if name in config:  # `scheduler.sigma_max`, as diffusers still has it
                return config[name]
            raise AttributeError(f"a {type(self).__name__} has no attribute {name!r}")
