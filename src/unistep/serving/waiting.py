"""Requests that wait, and the batches that they make: images of one model and plan, whoever asked for them."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unistep.generation.plan import Plan
from unistep.serving.batch import Row
from unistep.serving.model import ServedModel


@dataclass(eq=False)
class Ticket:
    """A request in the engine.

    Args:
        model: model that computes it.
        plan: noise levels or solver; None where `call` is one.
        rows: images to be made; empty where `call` is one.
        call: function that is called alone on the worker, for an edit.
        interactive: whether the request goes before bulk ones.
        on_image: called from the worker with (number of the row, pixels).
        on_end: called from the worker once, with the result of `call` or None, and the error or None.
    """

    model: ServedModel
    plan: Plan | None = None
    rows: Sequence[Row] = ()
    call: Callable[[], Any] | None = None
    interactive: bool = False
    on_image: Callable[[int, Tensor], None] = lambda number, pixels: None
    on_end: Callable[[Any, BaseException | None], None] = lambda result, error: None
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)
    taken: int = 0
    done: int = 0
    ended: bool = False

    @property
    def size(self) -> int:
        """Images that the request takes of the queue."""
        return len(self.rows) or 1

    @property
    def group(self) -> tuple[Any, ...]:
        """Requests of one group may share a batch."""
        return (id(self.model), self.plan, self.interactive)


class Waiting:
    """Tickets in the order in which they came; whoever uses it holds a lock."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket] = deque()

    def __bool__(self) -> bool:
        return bool(self._tickets)

    @property
    def images(self) -> int:
        """Images that wait."""
        return sum(ticket.size - ticket.taken for ticket in self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Puts a ticket at the end."""
        self._tickets.append(ticket)

    def discard(self, ticket: Ticket) -> None:
        """Removes a ticket, if it is there."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def clear(self) -> list[Ticket]:
        """Removes all tickets and returns them."""
        left = [*self._tickets]
        self._tickets.clear()
        return left

    def first(self, taken: Callable[[Ticket], bool]) -> Ticket | None:
        """Returns the ticket with which a batch begins: the oldest interactive one, else the oldest.

        Args:
            taken: whether a ticket can be computed by who asks.
        """
        mine = [ticket for ticket in self._tickets if taken(ticket)]
        return next((ticket for ticket in mine if ticket.interactive), mine[0] if mine else None)

    def together(self, first: Ticket) -> int:
        """Returns the number of images that a batch which begins with a ticket could hold."""
        return sum(one.size - one.taken for one in self._tickets if one.group == first.group)

    def take(self, first: Ticket, most: int) -> list[tuple[Ticket, range]]:
        """Removes the images of a batch, and returns their tickets with the numbers of their rows.

        Args:
            first: ticket with which the batch begins; one with a `call` is a batch of its own.
            most: images of the batch, at most.
        """
        if first.call is not None:
            self._tickets.remove(first)
            first.taken = 1
            return [(first, range(0))]
        parts = []
        for ticket in [first, *(one for one in self._tickets if one is not first and one.group == first.group)]:
            if not most or ticket.call is not None:
                continue
            numbers = range(ticket.taken, min(ticket.size, ticket.taken + most))
            ticket.taken, most = numbers.stop, most - len(numbers)
            parts.append((ticket, numbers))
            if ticket.taken == ticket.size:
                self._tickets.remove(ticket)
        return parts
