"""Loss and gradient of a batch as a CUDA graph, which the host launches as one.

The operations of a step are recorded once and then replayed on new numbers, which are copied into the tensors of the
recording. So one launch takes the place of thousands. What the operations do may depend on the
tensors alone; where a number of the curriculum changes, they are recorded anew.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

_BEFORE = 3
"""Steps that run as they are before the recording: in them libraries choose their algorithms."""


class Recorded:
    """A function of tensors, recorded.

    Args:
        function: function of a batch that returns tensors, and may leave gradients.
        clear: drops the gradients, which a recording must make itself.
        stream: stream that all steps run on.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], clear: Callable[[], None], stream: torch.cuda.Stream
    ) -> None:
        self._function, self._clear, self._stream = function, clear, stream
        self._key: Hashable = None
        self._before = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    @property
    def replaying(self) -> bool:
        """Whether the gradients belong to the recording, and must stay where they are."""
        return self._graph is not None

    def drop(self) -> None:
        """Forgets the recording."""
        self._graph, self._outputs, self._inputs, self._before = None, (), [], 0

    def __call__(self, key: Hashable | None, tensors: Sequence[Tensor], number: int) -> tuple[Tensor, ...]:
        """Returns what the function returns for `tensors`; the results are overwritten by the next call.

        Args:
            key: numbers beside the tensors that the operations depend on; None runs them unrecorded.
            tensors: arguments, of the same shapes at every call of a key.
            number: number of the step, for the function.
        """
        shapes = (key, *(t.shape for t in tensors))
        if key is None or shapes != self._key:
            if self.replaying:
                self.drop()
                self._clear()
            self._key, self._before = shapes, 0
        if key is None:
            return self._function(number, *tensors)
        if self._graph is None:
            if self._before < _BEFORE:
                self._before += 1
                return self._function(number, *tensors)
            self._record(tensors, number)
        assert self._graph is not None
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs

    def _record(self, tensors: Sequence[Tensor], number: int) -> None:
        self._clear()
        self._inputs = [t.clone() for t in tensors]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._outputs = self._function(number, *self._inputs)
        self._graph = graph
