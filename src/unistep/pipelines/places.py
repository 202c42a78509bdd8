"""Place and precision of a pipeline: `to`, and diffusers' ways to keep a network out of an accelerator's memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch

from unistep.errors import UserError
from unistep.pipelines.numbers import Whole, as_device, whole_number
from unistep.pipelines.offload import Offload
from unistep.pipelines.parts import PipelineParts
from unistep.pipelines.precision import cast, is_precision, resolved
from unistep.pipelines.runtimes import check_place
from unistep.pipelines.unet import unwrapped
from unistep.runtime.heap import keep_for

# `Self` is beyond the run-time check of types in the tests.
_Pipeline = TypeVar("_Pipeline", bound="PlacedPipeline")
_log = logging.getLogger("unistep")


class PlacedPipeline(PipelineParts):
    """The part of a pipeline that moves and casts it."""

    _offload: Offload | None = None

    # ------------------------------------------------------------------------------------------ place and precision

    def to(
        self: _Pipeline,
        *args: Any,
        device: Any = None,
        dtype: Any = None,
        torch_device: Any = None,
        torch_dtype: Any = None,
        silence_dtype_warnings: bool = False,
    ) -> _Pipeline:
        """Moves the network, sets the precision of its blocks, or both.

        Args:
            args: device, dtype, or both in this order, as to("cuda"), to(torch.float16), to("cuda", torch.float16).
            device, torch_device: two names of the device.
            dtype, torch_dtype: two names of the precision: a torch dtype, "fp32", "fp16", "bf16", or "auto", which logs
                its choice.
            silence_dtype_warnings: without effect: every precision works on every device.

        Returns:
            The pipeline itself.

        Raises:
            UserError: neither a device nor a dtype, one of them given twice, or not on this machine.
        """
        if len(args) > 2:
            raise UserError("Please make sure to pass at most two arguments (`device` and `dtype`) to `.to(...)`")
        if len(args) == 2 and isinstance(args[0], torch.dtype):
            raise UserError(
                "When passing two arguments, make sure the first is the `device` and the second the `dtype`"
            )
        places, kinds = {"device": device, "torch_device": torch_device}, {"dtype": dtype, "torch_dtype": torch_dtype}
        if len(args) == 2:
            places["the first argument"], kinds["the second argument"] = args
        elif args:
            (kinds if is_precision(args[0]) else places)["the argument"] = args[0]
        place, kind = _only("device", places), _only("dtype", kinds)
        chosen = None if place is None else as_device(place)
        if chosen is not None:
            check_place(unwrapped(self.unet), chosen)
        # Checked before the network moves: a refused call changes nothing.
        precision = None if kind is None else resolved(kind, chosen or self.device, unwrapped(self.unet))
        if chosen is not None:
            if self._offload is not None and chosen.type != "cpu":
                _log.warning("`enable_model_cpu_offload` is undone: the network stays on %s", chosen)
                self._offload = None
            unwrapped(self.unet).to(chosen)
        if precision is not None:
            cast(unwrapped(self.unet), precision)
        keep_for(unwrapped(self.unet))
        return self

    # ------------------------------------------------------------------------------------------ memory

    @property
    def _execution_device(self) -> torch.device:
        """Device that calls compute on."""
        return self.device if self._offload is None else self._offload.device

    @contextmanager
    def _at_work(self) -> Iterator[torch.device]:
        """Has the network on the device that a call computes on."""
        if self._offload is None:
            yield self.device
        else:
            with self._offload.holding(unwrapped(self.unet)) as device:
                yield device

    def enable_model_cpu_offload(self, gpu_id: Whole | None = None, device: Any = None) -> None:
        """Keeps the network in CPU memory, and on the accelerator during calls alone.

        Without an accelerator, and none asked for, the network stays on the CPU, which is logged.

        Args:
            gpu_id: number of the accelerator; 0 if not given.
            device: device of the accelerator; the first one of this machine if not given.

        Raises:
            UserError: there is no such device, or two numbers are given.
        """
        number = None if gpu_id is None else whole_number("gpu_id", gpu_id, least=0)
        if device is None:
            kind = next((k for k in ("cuda", "mps") if getattr(torch, k).is_available()), "cpu")
        else:
            place = as_device(device)
            if place.index is not None and number is not None:
                raise UserError(f"`gpu_id` {number} and `device` {device} both have a number; give one")
            kind, number = place.type, place.index if number is None else number
        if kind == "cpu":
            _log.warning("there is no accelerator to offload from: the network stays on the CPU")
            return
        chosen = as_device(f"{kind}:{number or 0}" if kind != "mps" else kind)
        check_place(unwrapped(self.unet), chosen)
        self.remove_all_hooks()
        self.to("cpu")
        self._offload = Offload(chosen)

    def enable_sequential_cpu_offload(self, gpu_id: Whole | None = None, device: Any = None) -> None:
        """Does the same as `enable_model_cpu_offload`: there is one network, which is moved as a whole.

        Args:
            gpu_id: number of the accelerator; 0 if not given.
            device: device of the accelerator; the first one of this machine if not given.

        Raises:
            UserError: there is no such device, or two numbers are given.
        """
        self.enable_model_cpu_offload(gpu_id, device)
        if self._offload is not None:
            _log.warning("the network is offloaded as a whole, not layer by layer")

    def enable_group_offload(self, *args: object, **options: object) -> NoReturn:
        """Refuses: networks are moved as a whole.

        Raises:
            UserError: always.
        """
        raise UserError("the network is moved as a whole, not by groups of layers; call `enable_model_cpu_offload`")

    def maybe_free_model_hooks(self) -> None:
        """Does nothing: a call moves an offloaded network back by itself."""

    def remove_all_hooks(self) -> None:
        """Ends the offloading; the network stays on the CPU."""
        self._offload = None

    def reset_device_map(self) -> None:
        """Does nothing: a pipeline is on one device."""


def _only(field: str, given: dict[str, Any]) -> Any:
    """The one value of several names that is given; None if there is none."""
    there = {name: value for name, value in given.items() if value is not None}
    if len(there) > 1:
        raise UserError(f"You have passed the `{field}` as {' and as '.join(there)}. Please only pass one of them.")
    return next(iter(there.values()), None)
