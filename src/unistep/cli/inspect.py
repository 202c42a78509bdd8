"""`unistep inspect`: what a model is, of whatever format; its weights are not used."""

import json
import sys
from typing import Any

from unistep.cli.arguments import new_parser, parse
from unistep.cli.source import add_source_options, source_options

_DESCRIPTION = """Tell what a model is: `unistep inspect [MODEL] [options]`.

MODEL is a model folder, a run directory, an OpenAI .pt, an EDM .pkl, or owner/name on the Hugging Face hub; without it
the embedded MNIST model."""

_KINDS = {
    "consistency": "consistency model: an image in one network evaluation",
    "diffusion": "diffusion model: an image in many network evaluations; a teacher",
}
_COLOURS = {1: "grey", 3: "colour"}
_TOLD = {"adm": "250 ln(sigma)", "edm": "ln(sigma)/4"}
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def run(arguments: list[str]) -> None:
    """Parses, opens the model without its weights, and prints."""
    parser = new_parser("inspect", _DESCRIPTION)
    parser.add_argument("model", type=str | None, nargs="?", default=None, help="what to look at")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_source_options(parser)
    parser.usage = "unistep inspect [MODEL] [options]"
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, arguments)

    from unistep.formats.describe import describe
    from unistep.workflows.models import open_any

    description = describe(open_any(parsed.model, "meta", **source_options(parsed)))
    if parsed.json:
        print(json.dumps(description, indent=2))
    else:
        _print(description)


def _print(description: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(description["path"]), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for key, value in rows_of(description):
        table.add_row(key, Text(value))
    Console().print(table)


def rows_of(d: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of a description, as (what, value)."""
    image, noise, network = d["image"], d["noise"], d["network"]
    size, channels = image["size"], image["channels"]
    # The other scalings number the noise levels in ways of their own.
    told = _TOLD[noise["embedding"]] if noise["scalings"] in ("consistency", "edm") else ""
    classes = f"{d['classes']:,}" if d["classes"] else "none (unconditional)"
    if d["null_label"] is not None:
        classes += f", and the null class {d['null_label']} for guidance"
    rows = [
        ("format", f"{d['format']}, {_DTYPES.get(d['dtype'], d['dtype'])}, {in_bytes(d['bytes'])}"),
        ("kind", _KINDS[d["kind"]]),
        ("trained by", d["method"] or "not told"),
        ("images", f"{size}x{size}, {_COLOURS.get(channels, f'{channels} channels')}"),
        ("classes", classes),
        ("network", f"{network['type']}, {d['parameters']:,} parameters"),
        *_network_rows(network),
        ("noise", f"sigma {noise['sigma_min']:g} to {noise['sigma_max']:g}, sigma_data {noise['sigma_data']:g}"),
        ("scalings", noise["scalings"] + (f"; the network is told {told}" if told else "")),
    ]
    if d["num_train_timesteps"] is not None:
        rows.append(("grid", f"{d['num_train_timesteps']} levels, rho {noise['rho']:g}"))
    schedules = [own for own in (d["timesteps"], *d["schedules"]) if own is not None]
    for own in sorted(schedules, key=len):
        rows.append(("schedule", f"timesteps {','.join(map(str, own))} for {len(own)} step{'s' * (len(own) > 1)}"))
    return rows + [("note", note) for note in d["notes"]]


def _network_rows(network: dict[str, Any]) -> list[tuple[str, str]]:
    resolutions = network["resolutions"]
    lines = [f"{r['size']:>4} px {r['channels']:>6} channels{', attention' * r['attention']}" for r in resolutions]
    places = ["in the middle"] if network["middle_attention"] else []
    if attending := [str(r["size"]) for r in resolutions if r["attention"]]:
        places.insert(0, f"at {', '.join(attending)} px")
    head = network["attention_head_dim"]
    heads = f"heads of {head} channels" if head else "one head"
    rows = [
        ("resolutions", "\n".join(lines)),
        ("blocks", f"{network['blocks_per_resolution']} a resolution on the way down, one more on the way up"),
        ("attention", f"{' and '.join(places)}, {heads}" if places else "none"),
        ("embedding", network["embedding"]),
    ]
    if network["patch_size"] > 1:
        rows.insert(0, ("patches", f"{network['patch_size']}x{network['patch_size']} pixels become channels"))
    return rows


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
