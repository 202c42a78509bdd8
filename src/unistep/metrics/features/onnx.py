"""Features of any network in an ONNX file, run by onnxruntime.

A number depends on the preparation of the images, so it must be declared: in FILE.json beside the file, or else in the
metadata of the model as the text `unistep`. Both are the JSON of a `Declaration`:

    {"size": 224, "channels": 3, "scale": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
     "resize": "clean", "layout": "NCHW", "pool": "features", "probabilities": "softmax"}

The network gets (pixels / scale - mean) / std, pixels in 0..255 after the resize. A model is a graph of numeric
operations; onnxruntime loads no code from it. Weights in files beside the model are refused: its hash would not tell
them apart.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.documents import DocumentError, parse_json
from unistep.engines.onnxruntime import onnxruntime
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.json_config import read_object, refuse_unknown, typed_fields
from unistep.formats.published.file import expanded
from unistep.metrics.features.info import FeatureInfo, Kind, Resize
from unistep.metrics.features.request import as_rgb, check_kinds
from unistep.metrics.features.resize import RESIZES, check_resize

METADATA_KEY = "unistep"
_BATCH = 64
_MOST_SIDE = 4096
_MOST_BYTES = 2 << 30  # the most that the format holds in one file
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


@dataclass(frozen=True)
class Declaration:
    """Input of the network of an ONNX file, and the outputs that are features.

    Args:
        size: height and width of the input in pixels.
        channels: channels of the input: 1, or 3 in the order red, green, blue; grey images are then repeated.
        scale: divisor of pixels in 0..255.
        mean: number subtracted then; one, or one a channel.
        std: divisor then; one number, or one a channel.
        resize: method that brings images to `size`; with "none" they must have it.
        layout: order of the input's dimensions.
        pool: name of the output with one vector an image, [B, D] or [B, D, 1, 1].
        probabilities: name of the output with the probabilities of classes [B, K]; null where there is none.
        label: name of the network in titles, as in FD-<label>; null is the name of the file.

    Raises:
        UserError: a value makes no sense.
    """

    size: int
    channels: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize
    layout: Literal["NCHW", "NHWC"]
    pool: str
    probabilities: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _MOST_SIDE:
            raise UserError(f"size {self.size} is not a number of pixels; give 1 to {_MOST_SIDE:,}")
        if self.channels not in (1, 3):
            raise UserError(f"channels {self.channels} are not those of images; give 1 or 3")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise UserError(f"{name} has {len(getattr(self, name))} numbers; give 1 or {self.channels}")
        if self.scale <= 0 or min(self.std) <= 0:
            raise UserError(f"scale {self.scale:g} and std {list(self.std)} are divided by; give positive numbers")


class ONNX:
    """Features by the network of an ONNX file: "pool", and "probabilities" where they are declared.

    Args:
        path: path of the file.
        device: device to compute on: "cpu", or "cuda" with a build of onnxruntime for it.
        resize: method of the resize in place of the declared one.

    Raises:
        UserError: onnxruntime is not installed, the file cannot be read, or what it declares does not fit it.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu", *, resize: str | None = None) -> None:
        path = expanded(path)
        check_regular_file(path, "give onnx:FILE", most_bytes=_MOST_BYTES)
        data = path.read_bytes()
        self._session = _session(path, data, torch.device(device))
        self._declaration = _declaration(path, self._session)
        self._outputs = [name for name in (self._declaration.pool, self._declaration.probabilities) if name]
        self._check_interface(path)
        self._path = path
        seen = {k: v for k, v in asdict(self._declaration).items() if k not in ("resize", "label")}
        identity = json.dumps({"file": hashlib.sha256(data).hexdigest(), **seen}, sort_keys=True)
        self.info = FeatureInfo(
            name=f"onnx:{path}",
            label=self._declaration.label or path.stem,
            digest=hashlib.sha256(identity.encode()).hexdigest(),
            resize=check_resize(resize or self._declaration.resize),
            dims=self._probe(),
            channels=1 if self._declaration.channels == 1 else None,
            classifies=self._declaration.probabilities is not None,
        )

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features; see `FeatureNetwork`."""
        check_kinds(self.info, kinds)
        if self._declaration.channels == 3:
            images = as_rgb(self.info, images)
        elif images.shape[1] != 1:
            raise UserError(f"features {self.info.name} are of grey images, and these have {images.shape[1]} channels")
        parts = [self._run(self._input(part)) for part in images.split(self._batch)]
        columns = dict(zip(self.info.dims, zip(*parts, strict=True), strict=True))
        return {kind: torch.from_numpy(np.concatenate(columns[kind])) for kind in kinds}

    def _check_interface(self, path: Path) -> None:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES or len(inputs[0].shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise UserError(f"{path} takes {found}; give a network of one batch of images, floats [B, C, H, W]")
        names = [output.name for output in self._session.get_outputs()]
        for name in self._outputs:
            if name not in names:
                raise UserError(f"{path} has no output {name!r}; declare one of {', '.join(names)}")
        self._input_name, self._dtype = inputs[0].name, _DTYPES[inputs[0].type]
        fixed = inputs[0].shape[0]
        self._fixed_batch = fixed if isinstance(fixed, int) else None
        self._batch = self._fixed_batch or _BATCH

    def _probe(self) -> dict[Kind, int]:
        """The lengths of the vectors, found on one black image: shapes in the file may be open."""
        d = self._declaration
        black = self._normalised(torch.zeros(1, d.channels, d.size, d.size))
        found = self._run(black)
        if len(found) > 1 and not (found[1].min() >= 0 and abs(found[1].sum() - 1) < 1e-3):
            raise UserError(
                f"{self._path}: output {d.probabilities!r} holds no probabilities (they do not add up to 1); "
                "declare the output of the softmax, or null"
            )
        kinds: tuple[Kind, ...] = ("pool", "probabilities")
        return {kind: features.shape[1] for kind, features in zip(kinds, found, strict=False)}

    def _input(self, images: UInt8[Tensor, "B C H W"]) -> np.ndarray:
        return self._normalised(RESIZES[self.info.resize](images, self._declaration.size))

    def _normalised(self, x: Float32[Tensor, "B C H W"]) -> np.ndarray:
        d = self._declaration
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (d.mean, d.std))
        x = (x / d.scale - mean) / std
        return np.ascontiguousarray((x if d.layout == "NCHW" else x.movedim(1, -1)).numpy(), self._dtype)

    def _run(self, x: np.ndarray) -> list[np.ndarray]:
        """The declared outputs for at most one batch, float32 [B, D]."""
        count = len(x)
        if self._fixed_batch:
            x = np.concatenate([x, np.zeros((self._fixed_batch - count, *x.shape[1:]), x.dtype)])
        try:
            found = self._session.run(self._outputs, {self._input_name: x})
        except Exception as error:  # onnxruntime's own, which share no base
            raise UserError(
                f"{self._path} cannot compute images of shape {list(x.shape)} ({_line(error)}); "
                "correct what it declares of its input"
            ) from None
        for name, value in zip(self._outputs, found, strict=True):
            if not _is_vectors(value, len(x)):
                kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
                raise UserError(
                    f"{self._path}: output {name!r} is {kind} for {len(x)} images; "
                    "declare one with a vector of floats an image, [B, D]"
                )
        return [value.reshape(len(x), value.shape[1])[:count].astype(np.float32) for value in found]


def _is_vectors(value: Any, count: int) -> bool:
    """Whether an output is [B, D], or as good as that."""
    return (
        isinstance(value, np.ndarray)
        and np.issubdtype(value.dtype, np.floating)
        and value.ndim >= 2
        and len(value) == count
        and all(side == 1 for side in value.shape[2:])
    )


def _session(path: Path, data: bytes, device: torch.device) -> Any:
    try:
        runtime = onnxruntime()
    except UserError:
        raise UserError("onnx:FILE needs onnxruntime: pip install 'unistep[onnx]'") from None
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    elif device.type != "cpu":
        raise UserError(f"this onnxruntime does not compute on {device}; install onnxruntime-gpu, or use the CPU")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions, and need not be printed
    # No folder: weights outside of the file are not found.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.resolve()))
    try:
        return runtime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # onnxruntime's own, which share no base
        raise UserError(
            f"{path} cannot be opened by onnxruntime ({_line(error)}); give an ONNX file that holds its own weights"
        ) from None


def _declaration(path: Path, session: Any) -> Declaration:
    beside = path.with_name(f"{path.name}.json")
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    remedy = f"it is to hold {_example(session)} with the network's own values"
    if beside.exists() or text is None:
        if not beside.exists():
            raise UserError(f"{path} does not declare its input; write {beside}, {remedy}")
        where, raw = beside, read_object(beside, remedy)
    else:
        where = Path(f"{path} (metadata {METADATA_KEY})")
        try:
            raw = parse_json(text)
        except DocumentError:
            raw = None
        if not isinstance(raw, dict):
            raise UserError(f"{where} is not a JSON object; {remedy}")
    known = fields(Declaration)
    refuse_unknown(raw, [field.name for field in known], where)
    values = typed_fields(Declaration, raw, where)
    missing = [field.name for field in known if field.default is MISSING and field.name not in values]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; {remedy}")
    try:
        return Declaration(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _example(session: Any) -> str:
    """A declaration that fits the model as far as its own interface tells."""
    shape = session.get_inputs()[0].shape if session.get_inputs() else []
    height = shape[2] if len(shape) == 4 and isinstance(shape[2], int) else 224
    layout = "NHWC" if len(shape) == 4 and shape[3] in (1, 3) else "NCHW"
    example = {"size": height, "channels": 3, "scale": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return json.dumps(example | {"resize": "clean", "layout": layout, "pool": session.get_outputs()[0].name})


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
