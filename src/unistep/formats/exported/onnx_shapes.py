"""The shape of every tensor of an ONNX graph, computed before a runtime sees it.

Where a size is a value, as the shape that a tensor is expanded to, the value has to follow from the file and from the
sizes of the inputs: it is computed too, with numbers that are few. A size that depends on the content of images is
refused.
"""

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN
from unistep.formats.exported.onnx_graph import Graph, Known, Node, refused
from unistep.formats.exported.onnx_rules import RULES, Invalid, Unknown
from unistep.formats.exported.onnx_values import value_of
from unistep.formats.exported.sizes import BATCHES, Limits, Step, check_steps

_MOST_RANK = 8


def check_sizes(graph: Graph, limits: Limits, path: Path) -> None:
    """Refuses a graph whose tensors are larger than those of any model.

    Args:
        graph: graph of the file.
        limits: limits of its tensors.
        path: file, for messages.

    Raises:
        UserError: a tensor is too large, all are together, or a size does not follow from the file and the inputs.
    """
    for shape in graph.inputs.values():
        if -1 in shape[1:]:
            raise refused(path, "an input of any size")
    nodes = list(_ordered(graph, path))
    found = {}
    for batch in BATCHES:
        known = _Known(graph, path, batch)
        found[batch] = [known.add(node) for node in nodes]
    check_steps(found, set(graph.stored), graph.outputs, limits, path)


def _ordered(graph: Graph, path: Path) -> Iterator[Node]:
    """The nodes, each after those whose outputs it takes."""
    makers = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name}
    if len(makers) != sum(name != "" for node in graph.nodes for name in node.outputs):
        raise UserError(f"{path} is damaged (two operations make one tensor)", AGAIN)
    needs = [{makers[name] for name in node.inputs if name in makers} for node in graph.nodes]
    users: dict[int, list[int]] = {}
    for i, before in enumerate(needs):
        for one in before:
            users.setdefault(one, []).append(i)
    left, ready, done = [len(before) for before in needs], deque(i for i, b in enumerate(needs) if not b), 0
    while ready:
        i = ready.popleft()
        done += 1
        yield graph.nodes[i]
        for user in users.get(i, ()):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    if done != len(graph.nodes):
        raise UserError(f"{path} is damaged (operations in a circle)", AGAIN)


class _Known:
    """The shapes of a graph's tensors at a size of the batch, by name."""

    def __init__(self, graph: Graph, path: Path, batch: int) -> None:
        self.path = path
        given = {name: Known(tuple(batch if side == -1 else side for side in s)) for name, s in graph.inputs.items()}
        self.tensors: dict[str, Known] = given | graph.stored

    def add(self, node: Node) -> Step:
        """Computes the shapes of the outputs of an operation.

        Raises:
            UserError: it has none, or one that depends on images.
        """
        inputs: list[Known | None] = []
        for name in node.inputs:
            if name and name not in self.tensors:
                raise self._damaged("takes a tensor that there is not", node)
            inputs.append(self.tensors[name] if name else None)
        try:
            shapes = RULES[node.operator](node, inputs)
            value = value_of(node, inputs) if len(node.outputs) == 1 else None
        except Unknown:
            raise refused(self.path, f"an operation {node.operator} whose size depends on images") from None
        except (Invalid, ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise self._damaged("has no size", node) from None
        if any(len(shape) > _MOST_RANK or min(shape, default=0) < 0 for shape in shapes):
            raise self._damaged("has no size", node)
        made: dict[object, int] = {}
        for i, shape in enumerate([*shapes, *[shapes[0]] * (len(node.outputs) - len(shapes))]):
            name = node.outputs[i] if i < len(node.outputs) else ""
            made[name or (node.outputs, i)] = math.prod(max(side, 1) for side in shape)
            if name:
                self.tensors[name] = Known(shape, value if value is not None and value.shape == shape else None)
        return Step(node.operator, [name for name in node.inputs if name], made)

    def _damaged(self, reason: str, node: Node) -> UserError:
        return UserError(f"{self.path} is damaged (an operation {node.operator} {reason})", AGAIN)
