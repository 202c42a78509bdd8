"""`unistep convert`: a model of any format as a model folder, or as an OpenAI .pt."""

import sys
from pathlib import Path
from typing import Any, Literal

from unistep.cli.arguments import new_parser, parse
from unistep.cli.source import add_source_options, source_options
from unistep.errors import UserError

_DESCRIPTION = """Convert a model: `unistep convert SOURCE TARGET [options]`.

SOURCE is a model folder, a run directory, an OpenAI .pt, an EDM .pkl, or owner/name on the Hugging Face hub. TARGET is
a model folder, which opens here and in diffusers, or a .pt as OpenAI's code reads it (ADM U-Nets only)."""

_UNWRITABLE = (".bin", ".ckpt", ".pkl", ".pth", ".safetensors", ".zip")


def run(arguments: list[str]) -> None:
    """Parses, converts, and says what was done."""
    parser = new_parser("convert", _DESCRIPTION)
    parser.add_argument("source", type=str | None, nargs="?", default=None, help="the model to read")
    parser.add_argument("target", type=str | None, nargs="?", default=None, help="a folder, or a .pt")
    text = "of the weights written; default: that of SOURCE"
    parser.add_argument("--dtype", type=Literal["fp32", "fp16", "bf16"] | None, default=None, help=text)
    add_source_options(parser)
    parser.usage = "unistep convert SOURCE TARGET [options]"
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, arguments)
    if parsed.target is None:
        raise UserError("convert needs two paths: unistep convert SOURCE TARGET")
    _convert(parsed.source, Path(parsed.target), parsed.dtype, source_options(parsed))


def _convert(source: str, target: Path, dtype_name: str | None, options: dict[str, Any]) -> None:
    _check_target(source, target)

    import torch

    from unistep.formats.model_folder.card import plain_card
    from unistep.formats.model_folder.folder import save_model
    from unistep.formats.openai.file import dropped_by_openai, save_openai
    from unistep.workflows.models import open_any

    model = open_any(source, **options)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = dtypes[dtype_name] if dtype_name else model.dtype
    if dtype not in dtypes.values():
        dtype = torch.float32
    notes = list(model.notes)
    if target.suffix == ".pt":
        save_openai(target, model, dtype=dtype)
        again, lost = dropped_by_openai(target.name, model)
        if again:
            notes.append(f"open {target.name} with {' '.join('--' + a for a in again)}: it does not tell itself")
        if lost:
            notes.append(f"{target.name} does not keep {', '.join(lost)}")
    else:
        origin = f"converted from {source} ({model.format}{f', {model.method}' if model.method else ''})"
        network, name = model.denoiser.network, target.resolve().name
        save_model(target, network, model.info, card=plain_card(name, model.info, origin), dtype=dtype)
    name = next(name for name, value in dtypes.items() if value == dtype)
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    print(f"{target}: {'OpenAI .pt' if target.suffix == '.pt' else 'model folder'}, {name}, {parameters:,} parameters")
    channels, height, width = model.image_shape
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    print(f"from {source}: {model.format}, {model.info.kind} model of {width}x{height}x{channels} images{classes}")
    for note in notes:
        print(f"note: {note}")


def _check_target(source: str, target: Path) -> None:
    """Refuses a target before anything is read."""
    if target.suffix in _UNWRITABLE:
        raise UserError(f"cannot write {target.suffix} files; give a folder, or a name that ends in .pt")
    if target.exists() and Path(source).exists():
        source_path, target_path = Path(source).resolve(), target.resolve()
        if target_path == source_path or target_path in source_path.parents:
            raise UserError(f"{target} is or holds the source {source}; choose another target")
    if target.suffix != ".pt":
        return  # `save_model` looks before it writes
    if target.is_dir():
        raise UserError(f"{target} is a folder; choose another name for the .pt")
    if target.exists():
        from unistep.formats.open import reader_of

        try:
            known = reader_of(target) == "openai"
        except UserError:
            known = False
        if not known:
            raise UserError(f"{target} exists and is not a checkpoint of PyTorch's; choose another target")
