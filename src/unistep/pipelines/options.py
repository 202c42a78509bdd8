"""The options of diffusers' functions that this package takes for granted, or cannot honour: tables of them.

An option that asks for nothing special is taken; any other value of it is refused in one sentence; a name that is in no
table is an error, as a misspelt one would otherwise do nothing.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.errors import UserError
from unistep.text import did_you_mean


@dataclass(frozen=True)
class Option:
    """An option of diffusers'.

    Args:
        name: name of the option.
        taken: values that ask for nothing special.
        refusal: reason against any other value, and the remedy.
    """

    name: str
    taken: tuple[Any, ...]
    refusal: str = ""


_FOREIGN = "pipelines of others are code, which is never executed; leave it out"
_ONE_NETWORK = "the model is one network on one device; give `device_map` as cpu, cuda or auto"
_ONNX = "there are no ONNX weights in these models; leave it out"
_HOLDS = "a consistency model is a network and a scheduler, and holds no such part; leave it out"
_FLASH = "FlashPack files are not read; leave it out"
_OFF = (None, False)
_ANY = (None, False, True)

DOWNLOADING = (
    Option("custom_pipeline", (None,), _FOREIGN),
    Option("custom_revision", (None,), _FOREIGN),
    Option("dduf_file", (None,), "DDUF files are not read; give a model folder"),
    Option("load_connected_pipeline", _ANY),
    Option("mirror", (None,), "set the environment variable HF_ENDPOINT to the address of the mirror"),
    Option("output_loading_info", _OFF, "a model opens with all its weights or not at all; leave it out"),
    Option("proxies", (None, {}), "set the environment variables HTTP_PROXY and HTTPS_PROXY"),
    Option("resume_download", _ANY),
    Option("trust_remote_code", _ANY),
    Option("use_flashpack", _OFF, _FLASH),
    Option("use_onnx", _OFF, _ONNX),
)
"""Options of a download."""

OPENING = (
    *DOWNLOADING,
    Option("feature_extractor", (None,), _HOLDS),
    Option("max_memory", (None,), _ONE_NETWORK),
    Option("offload_folder", (None,), _ONE_NETWORK),
    Option("offload_state_dict", _OFF, _ONE_NETWORK),
    Option("provider", (None,), _ONNX),
    Option("provider_options", (None,), _ONNX),
    Option("quantization_config", (None,), "networks are not quantized; give `torch_dtype` float16 or bfloat16"),
    Option("requires_safety_checker", _OFF, _HOLDS),
    Option("safety_checker", (None,), _HOLDS),
    Option("sess_options", (None,), _ONNX),
    Option("subfolder", (None, ""), "give the path of the model folder itself"),
)
"""Options of `ConsistencyModelPipeline.from_pretrained` beyond those of its signature."""

LOADING = (
    Option("local_dir", (None,), "give `cache_dir`"),
    Option("local_dir_use_symlinks", (None, "auto", False, True)),
    Option("mirror", (None,), "set the environment variable HF_ENDPOINT to the address of the mirror"),
    Option("output_loading_info", _OFF, "a config is read whole or not at all; leave it out"),
    Option("proxies", (None, {}), "set the environment variables HTTP_PROXY and HTTPS_PROXY"),
    Option("resume_download", _ANY),
    Option("user_agent", (None, {}), "requests name this package; leave it out"),
)
"""Options of a config that is read."""

PUSHING = (
    Option("commit_message", (None,), "is for `push_to_hub`; call it of the pipeline"),
    Option("create_pr", _OFF, "is for `push_to_hub`; call it of the pipeline"),
    Option("private", _OFF, "is for `push_to_hub`; call it of the pipeline"),
    Option("repo_id", (None,), "is for `push_to_hub`; call it of the pipeline"),
    Option("subfolder", (None, ""), "is for `push_to_hub`; call it of the pipeline"),
    Option("token", (None,), "is for `push_to_hub`; call it of the pipeline"),
)
"""Options of a config that is written."""


def unknown_argument(function: str, name: str, known: Iterable[str]) -> TypeError:
    """Returns the error of a keyword argument that a function does not have."""
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}")


def check_options(function: str, given: dict[str, Any], rows: Collection[Option], others: Iterable[str] = ()) -> None:
    """Refuses options that are in no table, and values that cannot be honoured.

    Args:
        function: name of the function that has the options.
        given: options by name.
        rows: table of the options.
        others: names of the function's other arguments, for the nearest name.

    Raises:
        UserError: a value that cannot be honoured.
        TypeError: an option that does not exist.
    """
    table = {row.name: row for row in rows}
    for name, value in given.items():
        if name not in table:
            raise unknown_argument(function, name, (*table, *others))
        if not any(value is taken or (type(value) is type(taken) and value == taken) for taken in table[name].taken):
            raise UserError(f"`{name}`: {table[name].refusal}")


@dataclass(frozen=True)
class Download:
    """Options of a download from the hub, by the names that diffusers gives them."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool | None = None
    force_download: bool | None = None
    subfolder: str | None = None
    variant: str | None = None

    @classmethod
    def of(
        cls, function: str, options: dict[str, Any], rows: Collection[Option], *, keep_unknown: bool = False
    ) -> "tuple[Download, dict[str, Any]]":
        """Sorts keyword arguments into those of a download and the rest.

        Args:
            function: name of the function that has them.
            options: keyword arguments.
            rows: table of the options without effect.
            keep_unknown: whether unknown ones are returned instead of refused.

        Raises:
            UserError: a value that cannot be honoured.
            TypeError: an option that does not exist.
        """
        own = {name: value for name, value in options.items() if name in cls.__dataclass_fields__}
        rest = {name: value for name, value in options.items() if name not in own}
        tabled = {row.name for row in rows}
        unused = {name: value for name, value in rest.items() if name not in tabled and keep_unknown}
        taken = {name: value for name, value in rest.items() if name not in unused}
        check_options(function, taken, rows, cls.__dataclass_fields__)
        return cls(**own), unused

    def folder(self, name: str) -> Path:
        """Fetches a model folder of the hub.

        Args:
            name: owner/name.

        Raises:
            UserError: the model cannot be had.
        """
        from unistep.formats.hub.download import fetch_folder

        return fetch_folder(name, variant=self.variant, **self._given())

    def config(self, name: str, file: str) -> tuple[Path, str]:
        """Fetches a config of a model of the hub, and nothing else.

        Args:
            name: owner/name.
            file: path of the config in the repository.

        Returns:
            The file in the cache, and its commit.

        Raises:
            UserError: the file cannot be had.
        """
        from unistep.formats.hub.download import fetch_config

        return fetch_config(name, file, **self._given())

    def _given(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_dir,
            "local_files_only": bool(self.local_files_only),
        } | ({"force_download": True} if self.force_download else {})
