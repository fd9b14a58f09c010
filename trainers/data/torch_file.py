"""Files of weights: of `torch.save`, looked through before torch's own reader has them, and of safetensors.

No code of a file is run. Objects that stand beside the weights, as the arguments of a training, are read as empty ones
of no class where that is asked for; what is code as a whole is named, with the way to its weights.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from vsfix.graph_passes.errors import ModelError, first_line

_ZIP = b"PK\x03\x04"
_SHOWN = 3
_LONGEST_HEADER = 100_000_000  # as safetensors itself has it
_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PICKLES_BEFORE_THE_WEIGHTS = 5  # in a file as torch wrote them before its version 1.6
_LARGEST_TUPLE = 10_000
_MOST_VALUES = 1_000_000
_DEEPEST = 100
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))


class _Unread:
    """An object of a class that is not loaded; it holds nothing of what the file says of it."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_weights_file(path: Path) -> Any:
    """Reads a file of `torch.save` or of safetensors; objects beside the tensors are left empty.

    Raises:
        ModelError: as `read_torch_file`; also a safetensors file that is damaged.
    """
    if _is_safetensors(path):
        return _read_safetensors(path)
    return read_torch_file(path, leave_objects=True)


def read_torch_file(path: Path, *, leave_objects: bool = False) -> Any:
    """Reads a file of `torch.save`: tensors, on the CPU, in dicts, lists and tuples with strings and numbers.

    Args:
        path: the file.
        leave_objects: objects of other classes come as empty ones; else they are refused.

    Raises:
        ModelError: the file is damaged or holds code, or it unpacks to far more than its size; a TorchScript archive,
            an ExportedProgram or a whole module.
    """
    try:
        if (archive := _foreign_archive(path)) is not None:
            raise ModelError(f"{path}: {archive}")
        _look_through(path)
        unknown = _classes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other kinds of file before it refuses them
            with torch.serialization.safe_globals([(type(name, (_Unread,), {}), name) for name in unknown]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        kind = content if isinstance(content, type) else type(content)
        if issubclass(kind, _Unread):
            raise ModelError(
                f"{path}: is a whole module or another object ({kind.__name__}) and holds code, which is "
                f"never run; where you trust it: torch.save(torch.load('{path}', weights_only=False)"
                ".state_dict(), 'weights.pt')"
            )
        if unknown and not leave_objects:
            raise pickle.UnpicklingError(f"objects of {', '.join(sorted(unknown)[:_SHOWN])}")
        _refuse_endless(content)
    except ModelError:
        raise
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


def _foreign_archive(path: Path) -> str | None:
    """What a file is that `torch.save` did not write, and the way to its weights."""
    if _is_safetensors(path):
        return f"holds safetensors, weights alone; they go with package.module:function --weights {path}"
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return (
            "is a TorchScript archive, whose code is never run; where you trust it: "
            f"torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt')"
        )
    if "archive_format" in names:
        return f"is an ExportedProgram; in Python: vsfix.export(torch.export.load('{path}'))"
    return None


def _classes(path: Path) -> list[str]:
    """The names in a file that torch does not know to be harmless."""
    if not zipfile.is_zipfile(path):
        return []  # the older form, which torch's own reader refuses where it names any
    return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def _is_safetensors(path: Path) -> bool:
    """By its first bytes: the length of a JSON object, and its beginning."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file: a JSON object of their types, shapes and places, and their bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
            values = bytearray(file.read())
            entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
            if other := [name for name, entry in entries.items() if str(entry["dtype"]) not in _SAFETENSORS]:
                raise ModelError(
                    f"{path}: {other[0]} is {entries[other[0]]['dtype']}, which is not read; save it as F32"
                )
            return {name: _tensor(entry, values) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise ModelError(f"{path}: is a damaged safetensors file ({first_line(error)})") from None


def _tensor(entry: Any, values: bytearray) -> torch.Tensor:
    """One tensor; its bytes must be as many as its shape says."""
    dtype, shape = _SAFETENSORS[entry["dtype"]], [int(side) for side in entry["shape"]]
    start, end = entry["data_offsets"]
    if min(shape, default=0) < 0 or not 0 <= start <= end <= len(values):
        raise ValueError("a tensor lies outside of it")
    count = math.prod(shape)
    if count * dtype.itemsize != end - start:
        raise ValueError("a tensor's bytes are not as many as its shape says")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(values[start:end], dtype=dtype).reshape(shape)


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
