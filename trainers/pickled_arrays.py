"""Reads pickles of plain values and numpy arrays without executing anything in them.

A pickle is a program for a stack machine, and some of its instructions call whatever they name. Here the instructions
are interpreted by a machine that has only those that build plain values; what a pickled numpy array needs to be called
(`_reconstruct`, `dtype`, `_codecs.encode`) is recognised by its name and replaced by what it means. Every other name,
and every other instruction, is refused. Byte strings of Python 2 come out as bytes.

Sources: the instructions as in Python's pickletools; the state of an array as in numpy's `ndarray.__reduce__`.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.named_file import why_unreadable

_MAX_BYTES = 1 << 29
_MAX_INSTRUCTIONS = 5_000_000
_MAX_DEPTH = 8
_RECONSTRUCT, _DTYPE, _ARRAY, _ENCODE = "reconstruct", "dtype", "ndarray", "encode"
_NAMES: Mapping[str, str] = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy ndarray": _ARRAY,
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,
}
_TYPES = frozenset({"u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"})


def read_pickle(path: Path) -> Any:
    """The value in a pickle: dicts, lists, tuples, strings, bytes, numbers, None, arrays of numbers.

    Raises:
        InputError: no such file, or it can't be opened.
        DataError: damaged, larger than 512 MiB, or not made of such values alone; nothing of it is executed.
    """
    if (reason := why_unreadable(path, _MAX_BYTES)) is not None:
        raise InputError(f"{path}: {reason}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    try:
        return _Machine().run(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: the pickle is damaged ({type(error).__name__})") from None


@dataclass(frozen=True)
class _Name:
    """A name that the pickle mentions, and may call."""

    meaning: str


@dataclass
class _Array:
    """An array whose state has not come yet, or has; or a dtype that waits for its byte order."""

    values: np.ndarray[Any, Any] | None = None
    code: str | None = None


_MARK = object()


@dataclass
class _Machine:
    """The stack and the memo."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    left_to_encode: int = 0

    def run(self, content: bytes) -> Any:
        """The value that the program leaves behind."""
        self.left_to_encode = len(content)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name == "STOP":
                return _plain(self.stack.pop(), {})
            if count > _MAX_INSTRUCTIONS:
                raise DataError("the pickle has more instructions than any file of this kind")
            self._step(opcode.name, argument)
        raise DataError("the pickle does not end")

    def _step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _BYTES:
            self.stack.append(argument if isinstance(argument, bytes) else argument.encode("latin-1"))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name in _BUILDERS:
            _BUILDERS[name](self)
        elif name == "GLOBAL":
            self.stack.append(_name(argument))
        else:
            raise DataError(f"the pickle holds the instruction {name}, which plain arrays don't need; not executed")

    def to_mark(self) -> list[Any]:
        """Takes what lies above the last mark, and the mark."""
        taken = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def take(self, count: int) -> tuple[Any, ...]:
        """Takes the last so many values."""
        taken = tuple(self.stack[-count:])
        if len(taken) < count:
            raise DataError("the pickle is damaged")
        del self.stack[-count:]
        return taken

    def extend(self, items: list[Any]) -> None:
        """Appends to the list on top."""
        if not isinstance(self.stack[-1], list):
            raise DataError("the pickle is damaged")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Puts keys and values into the dict on top."""
        if not isinstance(self.stack[-1], dict):
            raise DataError("the pickle is damaged")
        self.stack[-1].update(_entries(items))

    def stack_global(self) -> None:
        """A name of two strings."""
        module, name = self.take(2)
        self.stack.append(_name(f"{module} {name}"))

    def reduce(self) -> None:
        """What a call of one of the known names means."""
        called, arguments = self.take(2)
        if called == _Name(_ENCODE) and arguments[1] in ("latin1", "latin-1"):
            self.stack.append(self.encoded(arguments[0]))
        elif called == _Name(_DTYPE):
            self.stack.append(_Array(code=_text(arguments[0])))
        elif called == _Name(_RECONSTRUCT) and arguments[0] == _Name(_ARRAY):
            self.stack.append(_Array())
        else:
            raise DataError("the pickle calls something; nothing in it is ever executed")

    def encoded(self, text: str) -> bytes:
        """The bytes that a text stands for; all of them together are no more than the file has, each named once."""
        self.left_to_encode -= len(text)
        if self.left_to_encode < 0:
            raise DataError("the pickle unpacks to more than its size")
        return text.encode("latin-1")

    def build(self) -> None:
        """Gives an array or a dtype its state."""
        target, state = self.take(2)
        if not isinstance(target, _Array):
            raise DataError("the pickle sets the state of something that is no array; not executed")
        if target.code is None:
            target.values = _array(*state)
        elif _text(state[1]) == ">" and not target.code.endswith("1"):
            raise DataError("the pickle holds numbers in big endian; none are expected")
        self.stack.append(target)


def _name(text: str) -> _Name:
    if text not in _NAMES:
        raise DataError(f"the pickle names {text.replace(' ', '.')[:80]}, which plain arrays don't need; not executed")
    return _Name(_NAMES[text])


def _array(version: int, shape: tuple[int, ...], kind: _Array, fortran: bool, content: bytes) -> np.ndarray[Any, Any]:
    """An array from the state that numpy pickles."""
    if kind.code is None or kind.code.lstrip("|<") not in _TYPES:
        raise DataError("the pickle holds an array of something else than numbers; not executed")
    dtype = np.dtype(kind.code)
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise DataError("the pickle is damaged")
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
        raise DataError("the pickle holds an array whose numbers don't fill its shape")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _entries(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn; keys are texts: to look up a deep tuple or a vast number can end the process."""
    if not all(isinstance(key, str | bytes) for key in items[::2]):
        raise DataError("the pickle holds a dict whose keys are no texts")
    return dict(zip(items[::2], items[1::2], strict=True))


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _plain(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """The value with its arrays in it; names and half-made arrays are no values.

    `done` holds what was converted already by its identity: a value that is mentioned often is converted once.
    """
    if isinstance(value, _Array) and value.values is not None:
        return value.values
    if isinstance(value, _Name | _Array) or value is _MARK or depth > _MAX_DEPTH:
        raise DataError("the pickle holds something else than plain values and arrays")
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _plain(item, done, depth + 1) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_plain(item, done, depth + 1) for item in value)
    return done[id(value)]


_PUSHED = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_BYTES = frozenset("STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split())
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_BUILDERS: Mapping[str, Callable[[_Machine], None]] = {
    "TUPLE": lambda m: m.stack.append(tuple(m.to_mark())),
    "TUPLE1": lambda m: m.stack.append(m.take(1)),
    "TUPLE2": lambda m: m.stack.append(m.take(2)),
    "TUPLE3": lambda m: m.stack.append(m.take(3)),
    "LIST": lambda m: m.stack.append(m.to_mark()),
    "APPEND": lambda m: m.extend(list(m.take(1))),
    "APPENDS": lambda m: m.extend(m.to_mark()),
    "DICT": lambda m: m.stack.append(_entries(m.to_mark())),
    "SETITEM": lambda m: m.update(list(m.take(2))),
    "SETITEMS": lambda m: m.update(m.to_mark()),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
