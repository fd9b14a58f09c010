"""Files of `torch.save`: no code in them is run, and they are looked through before torch's own reader has them."""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from vsfix.graph_passes.errors import ModelError

_ZIP = b"PK\x03\x04"
_PICKLES_BEFORE_THE_WEIGHTS = 5  # in a file as torch wrote them before its version 1.6
_LARGEST_TUPLE = 10_000
_MOST_VALUES = 1_000_000
_DEEPEST = 100
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))


def read_torch_file(path: Path) -> Any:
    """Reads a file of `torch.save`: tensors, on the CPU, in dicts, lists and tuples with strings and numbers.

    Raises:
        ModelError: the file is damaged or holds code, or it unpacks to far more than its size.
    """
    try:
        _look_through(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other kinds of file before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_endless(content)
    except Exception as error:
        # A damaged file surfaces as whatever error the unpickler stumbles into, so no narrower class will do.
        reason = str(error).strip().split("\n")[0][:120]
        raise ModelError(
            f"{path}: can't be read as a checkpoint: damaged, or it holds code, which is never run"
            f" ({type(error).__name__}: {reason})"
        ) from None
    return content


def is_state_dict(content: object) -> bool:
    """Whether what a file holds is tensors by name."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    )


def _look_through(path: Path) -> None:
    """Refuses what takes the memory, the time or the stack of the process while it is being read."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_PICKLES_BEFORE_THE_WEIGHTS):
                _refuse_large_tuples(file)
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise pickle.UnpicklingError("it unpacks to more than its size; torch.save compresses nothing")
        pickles = [member for member in members if member.filename.lower().endswith("data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"it holds {len(pickles)} pickles instead of one")
        _refuse_large_tuples(io.BytesIO(archive.read(pickles[0])))


def _refuse_large_tuples(file: IO[bytes]) -> None:
    """Refuses a pickle with a tuple of far more values than a tensor's description has, those in it counted.

    A tuple of two that holds the same tuple twice, and so on, takes a few bytes a step; as the key of a dict, Python
    walks through all that it stands for, and through a deep one until its stack ends.
    """
    sizes: list[int | None] = []  # of what the unpickler has on its stack: the values of its largest tuple, None a mark
    known: dict[object, int | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _PUTS:
            known[argument] = sizes[-1]
        elif opcode.name in _GETS:
            sizes.append(known[argument])
        else:
            taken = [size or 1 for size in _take(sizes, opcode)]
            size = 1 + sum(taken) if opcode.name in _TUPLES else max(taken, default=1)
            if size > _LARGEST_TUPLE:
                raise pickle.UnpicklingError(f"it holds a tuple of over {_LARGEST_TUPLE} values")
            sizes += [None if made is pickletools.markobject else size for made in opcode.stack_after]


def _take(sizes: list[int | None], opcode: pickletools.OpcodeInfo) -> list[int | None]:
    """Takes from the stack what an instruction takes."""
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        mark = len(sizes) - 1 - sizes[::-1].index(None)
        count = len(sizes) - mark + opcode.stack_before.index(pickletools.markobject)
    if count > len(sizes):
        raise pickle.UnpicklingError("an instruction takes more than there is")
    taken = sizes[len(sizes) - count :]
    del sizes[len(sizes) - count :]
    return taken


def _refuse_endless(content: object) -> None:
    """Refuses lists and dicts that hold themselves, or each other so often that nobody could print them."""
    values, depth, left = 0, 0, [content]
    while left:
        held: list[object] = []
        for value in left:
            if isinstance(value, Mapping):
                held += (*value.keys(), *value.values())
            elif isinstance(value, list | tuple | set | frozenset):
                held += value
            if values + len(held) > _MOST_VALUES:
                raise pickle.UnpicklingError(f"it holds over {_MOST_VALUES} values")
        values, depth, left = values + len(held), depth + 1, held
        if depth > _DEEPEST:
            raise pickle.UnpicklingError(f"it holds values in over {_DEEPEST} others")
