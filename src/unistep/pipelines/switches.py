"""Attention and progress bars of a pipeline: switches that diffusers' pipelines have."""

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from unistep.errors import UserError
from unistep.pipelines.numbers import is_whole
from unistep.pipelines.places import PlacedPipeline
from unistep.pipelines.unet import unwrapped
from unistep.text import did_you_mean

_log = logging.getLogger("unistep")


class SwitchedPipeline(PlacedPipeline):
    """The part of a pipeline with the switches of attention, and that shows its progress."""

    _progress_bar_config: Mapping[str, Any] = {}

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Does nothing for networks of this package, whose attention never holds the whole matrix of weights.

        Args:
            slice_size: "auto", "max", a number, or None for no slices; passed on to a network of diffusers'.

        Raises:
            UserError: no such size.
        """
        if slice_size not in ("auto", "max", None) and not (is_whole(slice_size) and int(slice_size) > 0):
            raise UserError(f"`slice_size` is {slice_size!r}; it must be auto, max, a positive integer or None")
        inner: Any = unwrapped(self.unet)
        if hasattr(inner, "set_attention_slice"):
            inner.set_attention_slice(slice_size)

    def disable_attention_slicing(self) -> None:
        """Undoes `enable_attention_slicing`."""
        self.enable_attention_slicing(None)

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """Does the same as `enable_attention_slicing`."""
        self.enable_attention_slicing(slice_size)

    def enable_xformers_memory_efficient_attention(self, attention_op: object = None) -> None:
        """Does nothing for networks of this package: their attention is PyTorch's, which is memory-efficient already.

        Args:
            attention_op: operator of xFormers, for a network of diffusers' alone.

        Raises:
            UserError: an operator is asked for that the network cannot have.
        """
        self.set_use_memory_efficient_attention_xformers(True, attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Undoes `enable_xformers_memory_efficient_attention`."""
        self.set_use_memory_efficient_attention_xformers(False)

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: object = None) -> None:
        """Switches xFormers on or off, which only networks of diffusers' have.

        Args:
            valid: whether it is on.
            attention_op: operator of xFormers.

        Raises:
            UserError: an operator is asked for that the network cannot have.
        """
        inner: Any = unwrapped(self.unet)
        if not valid:
            inner.disable_xformers_memory_efficient_attention()
            return
        try:
            inner.enable_xformers_memory_efficient_attention(attention_op)
        except (ImportError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            _log.warning("attention is PyTorch's, for xFormers is not to be had: %s", str(error).splitlines()[0])

    # ------------------------------------------------------------------------------------------ progress

    def set_progress_bar_config(self, **options: Any) -> None:
        """Sets options of the tqdm bar that calls show.

        Args:
            options: options of `tqdm`; disable=True hides the bar.

        Raises:
            TypeError: an option that tqdm does not have.
        """
        from tqdm import tqdm

        known = inspect.signature(tqdm.__init__).parameters
        for name in options:
            if name not in known:
                raise TypeError(f"tqdm has no option {name!r}{did_you_mean(name, known)}")
        self._progress_bar_config = options

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """Returns a tqdm bar.

        Args:
            iterable: values to go through.
            total: number of steps, for a bar that is updated by hand.

        Raises:
            UserError: neither is given.
        """
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise UserError("Either `total` or `iterable` has to be defined.")
        # None: shown on terminals alone.
        given = {"total": total, "disable": None, "leave": False, **self._progress_bar_config}
        return tqdm(iterable, **given)
