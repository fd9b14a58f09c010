"""Changes files of data and checkpoints at random: their parts, the claims of their headers, their bytes."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable

import numpy as np
from message_mutation import mutate_bytes
from seeds import SAMPLES


class Payload:
    """Unpickled by the book, it writes the file `loot`."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("loot", "w")


def mutate_npz(content: bytes, rng: np.random.Generator) -> tuple[bytes, list[str]]:
    """An `.npz` file with other members, or damaged."""
    match rng.integers(4):
        case 0:
            return mutate_bytes(content, rng), ["bytes"]
        case 1:
            return _rewrite_members(content, rng, lambda _, part: _mutate_array(part, rng)), ["header or values"]
        case 2:
            return _rewrite_members(content, rng, lambda *_: _bomb(rng)), ["bomb"]
        case _:
            arrays = dict(np.load(io.BytesIO(content)))
            name = str(rng.choice(list(arrays)))
            changed = _another_array(arrays[name], rng)
            arrays[str(rng.choice([name, "z", "labels", "../x"]))] = changed
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            return buffer.getvalue(), [f"{name}: {changed.dtype} {changed.shape}"]


def mutate_zip(content: bytes, rng: np.random.Generator) -> tuple[bytes, list[str]]:
    """A checkpoint, which is a zip file of a pickle and raw tensors, with one part changed, or damaged as a whole."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng), ["bytes"]

    def change(name: str, part: bytes) -> bytes:
        if name.endswith(".pkl") and rng.random() < 0.1:
            return pickle.dumps(Payload(), protocol=2)
        return mutate_bytes(part, rng)

    return _rewrite_members(content, rng, change), ["member"]


def mutate_file(content: bytes, rng: np.random.Generator) -> tuple[bytes, list[str]]:
    """Any file: its header where numbers stand, or its bytes."""
    if rng.random() < 0.5 and len(content) > 16:
        changed = bytearray(content)
        place = int(rng.integers(0, 16))
        changed[place] = int(rng.integers(256))
        return bytes(changed), ["header"]
    return mutate_bytes(content, rng), ["bytes"]


def _rewrite_members(content: bytes, rng: np.random.Generator, change: Callable[[str, bytes], bytes]) -> bytes:
    """The zip file with one member changed, its checksum right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = names[rng.integers(len(names))]
        pickles = [name for name in names if name.endswith(".pkl")]
        if pickles and rng.random() < 0.5:
            chosen = pickles[0]
        for name in names:
            part = old.read(name)
            new.writestr(name, change(name, part) if name == chosen else part)
    return buffer.getvalue()


def _mutate_array(part: bytes, rng: np.random.Generator) -> bytes:
    """A `.npy` member whose header claims another shape or type."""
    claims = (b"<f8", b"|O ", b"<U9", b">i2", b"|V8", b"<M8")
    if rng.random() < 0.5:
        return part.replace(b"<f4", claims[rng.integers(len(claims))], 1)
    return part.replace(f"({SAMPLES},".encode(), (b"(99,", b"(-1,", b"(0, ", b"(9999999999999,")[rng.integers(4)], 1)


def _bomb(rng: np.random.Generator) -> bytes:
    """A `.npy` member of 256 MiB that takes 256 KiB in the file, or one whose header claims far more than it holds."""
    sides = int(rng.choice([2**12, 2**20, 2**40]))
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({sides}, 3, 64, 64), }}".ljust(117) + "\n"
    body = bytes(64 << 20) if rng.random() < 0.1 else bytes(4096)
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


def _another_array(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The array with other values, another type or another shape."""
    match rng.integers(7):
        case 0:
            changed = array.astype(np.float64)
            changed.flat[rng.integers(changed.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e30])
            with np.errstate(all="ignore"):
                return changed.astype(array.dtype) if rng.random() < 0.5 else changed
        case 1:
            return array.astype(str(rng.choice(["f2", "f8", "i1", "u8", "?", "c8", "U5", "S3"])))
        case 2:
            return np.zeros_like(array)
        case 3:
            return array[: int(rng.integers(0, 3))]
        case 4:
            return array.reshape(-1)
        case 5:
            return np.array([Payload()], dtype=object) if rng.random() < 0.5 else np.array(1.0)
        case _:
            return (array * 1e4 - 3e4).astype(array.dtype)
