"""The stack machine that a pickle is a program for, with the instructions that data needs and no others.

It imports nothing: a name in the file is looked up in a table, and one that is not there is refused by its name.
Objects of classes come out as `PickledObject`, which is inert: no attribute is set, no `__setstate__` called.

`pickle.Unpickler` with a `find_class` of one's own is not enough. It allocates memory of any size (memo, frames), it
hashes keys nested so deeply that the stack overflows, and it takes objects from a cache of the process (EXT opcodes).
The decoding of the instructions is the standard library's, `pickletools.genops`, which executes nothing.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unistep.errors import UserError


@dataclass
class PickledObject:
    """An object of the file as inert data, never an instance of its class.

    Args:
        class_name: name of the class, with its module except for NVIDIA's persistent classes.
        state: stored state, for a module its `__dict__`; None if there is none.
        args: stored arguments of the constructor.
    """

    class_name: str
    state: Any = None
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Class:
    """A class that a file may name; its objects become `PickledObject`.

    Args:
        name: name of the class, with its module.
    """

    name: str


@dataclass(frozen=True)
class Function:
    """A function that a file may name, and its replacement.

    Args:
        call: replacement, which is called with the arguments in the file.
        cost: function from these arguments to the bytes that a call allocates; None if they are few.
        protocol: lowest protocol of the pickles that may name it; below 4 names have another instruction.
    """

    call: Callable[..., Any]
    cost: Callable[..., int] | None = None
    protocol: int = 0


Names = Mapping[tuple[str, str], Any]
_MARK = object()


def refusal(name: str) -> UserError:
    """Makes the error for a file that names a forbidden object."""
    shown = ascii(name[:100])[1:-1]
    return UserError(f"it names {shown}, which no network needs; it was refused, and nothing in the file was executed")


def run(
    stream: Any,
    names: Names,
    *,
    max_instructions: int,
    room: int = 0,
    persistent: Callable[[Any], Any] | None = None,
    attributes: bool = False,
) -> Any:
    """The object that a pickle makes.

    Args:
        stream: binary file at the start of the pickle; afterwards it is at the end.
        names: all objects that the pickle may name, by module and name: a `Class`, a `Function`, or a value for it.
        max_instructions: largest number of instructions; each makes one small object at most, so that a small file
            cannot take much memory.
        room: bytes that all calls together may allocate.
        persistent: function that resolves persistent ids; None refuses them.
        attributes: whether a dict may be given attributes, which are dropped.

    Raises:
        UserError: the pickle names a forbidden object, or exceeds `max_instructions` or `room`.
        Exception: the pickle is damaged; of almost any kind.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if count >= max_instructions:
            raise UserError(f"it has more than {max_instructions} instructions, which no network needs")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            # Plain values.
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "LONG1" | "LONG4" if exactly(int, arg).bit_length() > 128:
                raise ValueError("a number of many digits")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(arg)
            case (
                "SHORT_BINSTRING"
                | "BINSTRING"
                | "SHORT_BINUNICODE"
                | "BINUNICODE"
                | "BINUNICODE8"
                | "SHORT_BINBYTES"
                | "BINBYTES"
                | "BINBYTES8"
            ):
                stack.append(arg)
            # Containers.
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [_items(stack[-n:], n)]
            case "TUPLE":
                stack.append(tuple(_from_mark(stack)))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(_from_mark(stack))
            case "APPEND":
                value = stack.pop()
                exactly(list, stack[-1]).append(value)
            case "APPENDS":
                values = _from_mark(stack)
                exactly(list, stack[-1]).extend(values)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                values = _from_mark(stack)
                stack.append({})
                _set_items(stack[-1], values)
            case "SETITEM":
                values = [stack.pop(-2), stack.pop()]
                _set_items(stack[-1], values)
            case "SETITEMS":
                values = _from_mark(stack)
                _set_items(stack[-1], values)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                values = _from_mark(stack)
                exactly(set, stack[-1]).update(map(checked_key, values))
            # The stack and the memo.
            case "POP":
                stack.pop()
            case "POP_MARK":
                _from_mark(stack)
            case "DUP":
                stack.append(stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[exactly(int, arg)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[exactly(int, arg)])
            # Names, and what is made of them.
            case "GLOBAL":
                stack.append(_look_up(names, *exactly(str, arg).split(" ", 1), protocol=3))
            case "STACK_GLOBAL":
                name, module = exactly(str, stack.pop()), exactly(str, stack.pop())
                stack.append(_look_up(names, module, name))
            case "REDUCE" | "NEWOBJ":
                args, what = exactly(tuple, stack.pop()), stack.pop()
                if type(what) is Function and what.cost is not None:
                    room -= what.cost(*args)
                    if room < 0:
                        raise UserError("its tensors take more bytes than the file has; it is damaged, fetch it again")
                stack.append(_make(what, args))
            case "BUILD":
                state = stack.pop()
                if not (attributes and type(stack[-1]) is dict):
                    _build(stack[-1], state)
            case "BINPERSID" if persistent is not None:
                stack.append(persistent(stack.pop()))
            case "INST":
                raise refusal(exactly(str, arg).replace(" ", "."))
            case other:
                raise refusal(f"opcode {other}")
    raise ValueError("no STOP")


def exactly(kind: type, value: Any) -> Any:
    """Returns `value` if it is of that type and no subtype: a bool is no int.

    Raises:
        ValueError: it is of another type.
    """
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def checked_key(value: Any) -> Any:
    """Returns `value` if it is a number of usual size, a string or None.

    The hash of nested tuples takes exponential time; whole numbers from 2^61 on can be chosen to have one hash, which
    makes a dict quadratic.

    Raises:
        ValueError: it is of another type, or a larger number.
    """
    if value is not None and type(value) not in (str, int, float, bool, bytes):
        raise ValueError(f"a key of type {type(value).__name__}")
    if type(value) is int and value.bit_length() > 60:
        raise UserError(f"it has a key of {value.bit_length()} bits, which no network needs")
    return value


def _items(values: list[Any], n: int) -> tuple[Any, ...]:
    if len(values) != n or any(value is _MARK for value in values):
        raise ValueError("the stack is too short")
    return tuple(values)


def _from_mark(stack: list[Any]) -> list[Any]:
    """Removes the last mark and everything above it, and returns the latter."""
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise ValueError("no mark")
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _set_items(target: Any, values: list[Any]) -> None:
    for key, value in zip(values[::2], values[1::2], strict=True):
        exactly(dict, target)[checked_key(key)] = value


def _look_up(names: Names, module: str, name: str, protocol: int = 4) -> Any:
    found = names[module, name] if (module, name) in names else None
    if found is None or (type(found) is Function and found.protocol > protocol):
        raise refusal(f"{module}.{name}")
    return found


def _make(what: Any, args: tuple[Any, ...]) -> Any:
    if type(what) is Function:
        return what.call(*args)
    if type(what) is Class:
        return PickledObject(what.name, args=args)
    raise ValueError(f"{type(what).__name__} is called")


def _build(target: Any, state: Any) -> None:
    if type(target) is not PickledObject or target.state is not None or state is None:
        raise ValueError(f"state for {type(target).__name__}")
    target.state = state
