"""The mark by which a layer whose scale and shift a repair wrote is known, wherever the layer stands.

It is an attribute of the layer: it goes with a copy, a pickle, and into whatever module the layer is put, but not with
a `state_dict`. It holds digests of what was written, so that it means nothing once other values are loaded or trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

_MARK = "_vsfix_repaired"
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # that the layer may be converted to


def mark_repaired(part: nn.Module, names: Iterable[str]) -> None:
    """Marks a layer.

    Args:
        part: what was written stands in it.
        names: of its parameters and buffers that were written.
    """
    written = tuple(names)
    vars(part)[_MARK] = (written, frozenset(_digest(part, written, dtype) for dtype in _TYPES))


def repaired_parts(module: nn.Module) -> tuple[str, ...]:
    """The names of the layers of a module that hold what a repair wrote; the module itself has none."""
    return tuple(name for name, part in module.named_modules() if _is_repaired(part))


def _is_repaired(part: nn.Module) -> bool:
    names, digests = vars(part).get(_MARK, ((), frozenset()))
    return bool(names) and _digest(part, names, None) in digests


def _digest(part: nn.Module, names: Iterable[str], dtype: torch.dtype | None) -> str:
    """Of some parameters and buffers, as numbers: rounded to a type, or as they are."""
    held = {**part._parameters, **part._buffers}
    digest = hashlib.sha256()
    for name in names:
        tensor = held.get(name)
        values = b"" if tensor is None else tensor.detach().cpu().to(dtype).double().numpy().tobytes()
        digest.update(name.encode() + values)
    return digest.hexdigest()
