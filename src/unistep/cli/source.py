"""The options that say which model is meant, of the commands that open one."""

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

_OPTIONS = {
    "kind": (Literal["consistency", "diffusion"], "what a .pt is, where neither it nor its name tells"),
    "attention_head_dim": (int, "channels of an attention head in a .pt; default: 64, as in all published models"),
    "sample_size": (int, "side of a .pt's images in pixels; default: that at which attention begins at 32 pixels"),
    "variant": (str, "of the weights in a model folder, as fp16"),
    "revision": (str, "branch, tag or commit on the hub"),
    "token": (str, "for private models on the hub; default: that of `hf auth login`, or HF_TOKEN"),
    "cache_dir": (str, "where downloads are kept"),
}


def add_source_options(parser: ArgumentParser) -> None:
    """Adds `--kind`, `--revision` and so on: the arguments of `unistep.formats.open.open_model`."""
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=text)
    text = "take what was downloaded before, and ask nobody"
    parser.add_argument("--local_files_only", action="store_true", help=text)


def source_options(parsed: Namespace) -> dict[str, Any]:
    """Takes them out of what was parsed, and returns those that were given, by name."""
    taken = {name: parsed.pop(name) for name in (*_OPTIONS, "local_files_only")}
    return {name: value for name, value in taken.items() if value is not None and value is not False}  # 0 is a value
