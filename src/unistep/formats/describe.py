"""Reports on models: format, images, network, noise range and schedules, without the values of the weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.formats.checkpoint_names import parts_folder
from unistep.networks.outline import fields_of
from unistep.text import html_table, shown

if TYPE_CHECKING:
    from unistep.formats.model import LoadedModel

_KINDS = {
    "consistency": "consistency model: an image in one network evaluation",
    "diffusion": "diffusion model: an image in many network evaluations; a teacher",
}
_COLOURS = {1: "grey", 3: "colour"}
_EMBEDDINGS = {"adm": "250 ln(sigma)", "edm": "ln(sigma)/4"}
_NAMES_SHOWN = 20
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, repr=False)
class ModelReport:
    """A description of a model.

    Args:
        path: file or folder.
        format: title of the format.
        bytes: size on disk of the file, or of all files of the folder.
        dtype: dtype of most weights in the file, as "float16".
        kind: "consistency" or "diffusion".
        method: training method; None if the files do not hold it.
        image_shape: channels, height, width of an image.
        num_classes: number of classes without the null class; 0 for an unconditional model.
        class_names: name of each class, in the order of their numbers; empty if the files hold none.
        null_label: class that stands for none; None if there is none.
        parameters: number of parameters.
        network: class of the network (`type`), its outline (`resolutions` with their side in pixels and channels,
            finest first, and more) and all fields of its config (`config`).
        noise: noise range, scalings and noise embedding.
        num_train_timesteps: levels of a consistency model's noise grid.
        timesteps: indices of a good schedule of two steps; None if there is none.
        schedules: good schedules of other numbers of steps.
        notes: assumptions about facts that the files do not hold, a line each.
        clip: whether samplers clamp the outputs of the model to [-1, 1] by default.
    """

    path: Path
    format: str
    bytes: int
    dtype: str
    kind: str
    method: str | None
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    null_label: int | None
    parameters: int
    network: dict[str, Any]
    noise: dict[str, Any]
    num_train_timesteps: int | None
    timesteps: tuple[int, ...] | None
    schedules: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]
    clip: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        channels, size, _ = self.image_shape
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.bytes,
            "dtype": self.dtype,
            "kind": self.kind,
            "method": self.method,
            "image": {"size": size, "channels": channels},
            "classes": self.num_classes,
            **({"class_names": list(self.class_names)} if self.class_names else {}),
            "null_label": self.null_label,
            "parameters": self.parameters,
            "network": self.network,
            "noise": self.noise,
            "num_train_timesteps": self.num_train_timesteps,
            "timesteps": None if self.timesteps is None else list(self.timesteps),
            "schedules": [list(own) for own in self.schedules],
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and value of each line of a table."""
        channels, height, width = self.image_shape
        noise = self.noise
        # The other scalings number the noise levels in ways of their own.
        embedding = _EMBEDDINGS[noise["embedding"]] if noise["scalings"] in ("consistency", "edm") else ""
        classes = f"{self.num_classes:,}" if self.num_classes else "none (unconditional)"
        if self.null_label is not None:
            classes += f", and the null class {self.null_label} for guidance"
        names = [shown(name) for name in self.class_names[:_NAMES_SHOWN]]
        lines = [f"{number} {name}" for number, name in enumerate(names)]
        if len(self.class_names) > _NAMES_SHOWN:
            lines.append(f"and {len(self.class_names) - _NAMES_SHOWN:,} more")
        rows = [
            ("format", f"{self.format}, {_DTYPES.get(self.dtype, self.dtype)}, {in_bytes(self.bytes)}"),
            ("kind", _KINDS[self.kind]),
            ("trained by", self.method or "unknown"),
            ("images", f"{width}x{height}, {_COLOURS.get(channels, f'{channels} channels')}"),
            ("classes", "\n".join([classes, *lines])),
            ("network", f"{self.network['type']}, {self.parameters:,} parameters"),
            *_network_rows(self.network),
            ("noise", f"sigma {noise['sigma_min']:g} to {noise['sigma_max']:g}, sigma_data {noise['sigma_data']:g}"),
            ("scalings", noise["scalings"] + (f"; noise embedding {embedding}" if embedding else "")),
        ]
        if not self.clip:
            rows.append(("sampling", "outputs are not clamped to [-1, 1]"))
        if self.num_train_timesteps is not None:
            rows.append(("grid", f"{self.num_train_timesteps} levels, rho {noise['rho']:g}"))
        schedules = [own for own in (self.timesteps, *self.schedules) if own is not None]
        for own in sorted(schedules, key=len):
            rows.append(("schedule", f"timesteps {','.join(map(str, own))} for {len(own)} step{'s' * (len(own) > 1)}"))
        return rows + [("note", note) for note in self.notes]

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        return f"ModelReport({self.path}: {self.kind} model of {width}x{height}x{channels} images, {self.format})"

    def _repr_html_(self) -> str:
        return html_table(str(self.path), self.rows())


def describe(model: "LoadedModel") -> ModelReport:
    """Describes a model; the values of its weights are not used."""
    info, network = model.info, model.denoiser.network
    consistency = info.kind == "consistency"
    outline = getattr(model.config, "outline", None)  # a network may have none
    return ModelReport(
        path=model.path,
        format=model.format,
        bytes=_bytes_on_disk(model.path),
        dtype=str(model.dtype).removeprefix("torch."),
        kind=info.kind,
        method=model.method,
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        class_names=info.class_names,
        null_label=info.null_label,
        parameters=getattr(network, "num_parameters", None) or sum(p.numel() for p in network.parameters()),
        network={
            "type": type(network).__name__,
            **({} if outline is None else {name: v for name, v in dataclasses.asdict(outline()).items() if v != ""}),
            "config": fields_of(model.config),
        },
        noise={
            "sigma_min": info.sigma_min,
            "sigma_max": info.sigma_max,
            "sigma_data": info.sigma_data,
            "rho": info.rho,
            "scalings": "consistency" if consistency else info.preconditioning,
            "embedding": info.noise_embedding,
        },
        num_train_timesteps=info.num_train_timesteps if consistency else None,
        timesteps=info.timesteps,
        schedules=info.schedules,
        notes=model.notes,
        clip=info.clip,
    )


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _network_rows(network: dict[str, Any]) -> list[tuple[str, str]]:
    if "resolutions" not in network:
        return []
    resolutions = network["resolutions"]
    lines = [f"{r['size']:>4} px {r['channels']:>6} channels{', attention' * r['attention']}" for r in resolutions]
    places = ["in the middle"] if network["middle_attention"] else []
    if attending := [str(r["size"]) for r in resolutions if r["attention"]]:
        places.insert(0, f"at {', '.join(attending)} px")
    head = network["attention_head_dim"]
    heads = f"heads of {head} channels" if head else "one head"
    if count := network["config"].get("num_heads"):
        heads = f"{count} heads"
    rows = [
        ("resolutions", "\n".join(lines)),
        ("blocks", f"{network['blocks_per_resolution']} a resolution on the way down, one more on the way up"),
        ("attention", f"{' and '.join(places)}, {heads}" if places else "none"),
        ("embedding", network["embedding"]),
    ]
    if "further" in network:
        rows.append(("further inputs", network["further"]))
    if network["patch_size"] > 1:
        rows.insert(0, ("patches", f"{network['patch_size']}x{network['patch_size']} pixels become channels"))
    return rows


def _bytes_on_disk(path: Path) -> int:
    # A checkpoint may have files beside it.
    files = [path, *parts_folder(path).rglob("*")] if path.is_file() else path.rglob("*")
    return sum(p.stat().st_size for p in files if p.is_file())
