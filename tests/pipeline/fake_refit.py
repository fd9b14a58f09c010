"""The refit of the stand-in for TensorRT: its engines hold weights by name and take new ones.

The document of an engine has two more entries, `weights` by name as type and bytes, and `fused`, the groups of weights
of which one can't be set without the others.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

NUMPY = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def refittable_part(trt: Any, network: Any, config: Any) -> dict[str, Any]:
    """The weights that a plan can be given anew, and which of them are fused with each other."""
    names = network.marked if getattr(trt.BuilderFlag, "REFIT_INDIVIDUAL", None) in config.flags else set()
    if trt.BuilderFlag.REFIT in config.flags:
        names = {name for group in network.fused for name in group}
    fused = [[name for name in group if name in names] for group in network.fused]
    held = {name: [network.weights[name].dtype.name, network.weights[name].tobytes().hex()] for name in sorted(names)}
    return {"weights": held, "fused": fused} if names else {}


def add_entries(plan: bytes, entries: dict[str, Any]) -> bytes:
    """A plan with more in its document."""
    start = plan.find(b"{")
    return plan if not entries else plan[:start] + json.dumps(json.loads(plan[start:]) | entries).encode()


def held_weights(plan: bytes) -> dict[str, np.ndarray]:
    """The weights in a plan, flat, by name."""
    held = json.loads(plan[plan.index(b"{") :]).get("weights", {})
    return {name: np.frombuffer(bytes.fromhex(raw), np.dtype(dtype)) for name, (dtype, raw) in held.items()}


class Weights:
    """Weights as TensorRT takes them: an array, or a type, an address and a count."""

    def __init__(self, source: Any, address: int = 0, count: int = 0) -> None:
        if isinstance(source, np.ndarray):
            self.dtype, self.raw = source.dtype.name, source.tobytes()
        else:
            self.dtype = NUMPY[source.name]
            self.raw = ctypes.string_at(address, count * np.dtype(self.dtype).itemsize)


class Refitter:
    """Sets weights of an engine; wants those again that are fused with what was set."""

    def __init__(self, engine: Any, log: Any) -> None:
        self._document, self._log, self._set = engine.document, log, {}

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        dtype, raw = self._document.get("weights", {}).get(name, ("", ""))
        if weights.dtype != dtype or len(weights.raw) != len(raw) // 2:
            self._log.log(self._log.ERROR, f"Error Code 3: no weights {name} of this type and size")
            return False
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        touched = [group for group in self._document["fused"] if any(name in self._set for name in group)]
        return [name for group in touched for name in group if name not in self._set]

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        for name, weights in self._set.items():
            self._document["weights"][name] = [weights.dtype, weights.raw.hex()]
        return True


def add_serialization(trt: Any, engine: Any, write: Callable[[dict[str, Any]], bytes]) -> None:
    """Gives an engine what writes its plan again: `write` of its document, as far as the version keeps it.

    8.6 has one way; 10 keeps what it is told to; 11, as from 10.14 on, keeps an engine refittable only if it is told to.
    """
    document = engine.document  # and not the engine, which must die with its last name
    if not hasattr(trt, "SerializationFlag"):
        engine.serialize = lambda: write(document)
        return
    flags = trt.SerializationFlag

    def serialize_with_config(config: Any) -> bytes:
        stays = not hasattr(flags, "INCLUDE_REFIT") or flags.INCLUDE_REFIT in config.flags
        kept = stays and flags.EXCLUDE_WEIGHTS not in config.flags
        return write({key: value for key, value in document.items() if kept or key != "weights"})

    def create_serialization_config() -> Any:
        config = SimpleNamespace(flags={flags.EXCLUDE_WEIGHTS})
        config.set_flag, config.clear_flag = config.flags.add, config.flags.discard
        return config

    engine.serialize_with_config = serialize_with_config
    engine.create_serialization_config = create_serialization_config
