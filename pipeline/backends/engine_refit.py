"""New weights for a built engine, by the names that the ONNX file gives them; what differs between versions is here.

                       8.6              10, 11, RTX 1
    what is marked     every weight     the weights that are named (REFIT_INDIVIDUAL)
    types              of numpy         also bfloat16
    written again      serialize        a configuration that keeps the weights and, from 10.14 on, the refit

TensorRT 11.3 may drop the bias of a product in a refittable engine and compute with 0 (a known issue of its release
notes, gone in 11.4, and not excluded before): no such engine is built with 11.0 to 11.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError
from vsfix.graph_passes.inference import Array

from .cuda_runtime import visible_capability
from .tensorrt_log import Log, first_error

INDIVIDUAL, ALL = "individual", "all"
_DROPS_BIASES = re.compile(r"11\.[0-3]\b")


def require_refit(runtime: str, version: str) -> None:
    """Refuses a version whose refittable engines compute something else, and a machine that can't build one.

    Raises:
        InputError: names the versions that don't.
        MissingComponentError: TensorRT-RTX compiles a refittable engine on a GPU only, whatever its target.
    """
    if runtime == "tensorrt" and _DROPS_BIASES.match(version):
        raise InputError(
            f"--refit: a refittable engine of TensorRT {version} may compute with a bias of 0 (a known issue of 11.3); "
            "take 10, or 11.4 and newer, or leave --refit out"
        )
    if runtime == "tensorrt-rtx" and visible_capability() is None:
        raise MissingComponentError(
            f"tensorrt-rtx {version} builds a refittable engine on a machine with an NVIDIA GPU and driver only, and "
            "finds none here; build it there, or leave --refit out"
        )


def mark_refittable(library: Any, config: Any, network: Any, names: Sequence[str]) -> str:
    """Marks the weights of a parsed network that the engine shall take anew.

    Returns:
        `individual` where exactly those are marked, `all` where the version marks all or none (8.6).

    Raises:
        BuildError: TensorRT knows no weights of that name.
    """
    if not hasattr(library.BuilderFlag, "REFIT_INDIVIDUAL"):
        config.set_flag(library.BuilderFlag.REFIT)
        return ALL
    config.set_flag(library.BuilderFlag.REFIT_INDIVIDUAL)
    for name in names:
        if not network.mark_weights_refittable(name):
            raise BuildError(f"TensorRT knows no weights of the name '{name}', so that the engine can't be refitted")
    return INDIVIDUAL


def refit_engine(
    library: Any, log: Log, engine: Any, changed: Mapping[str, Array], known: Mapping[str, Array]
) -> tuple[bytes, tuple[str, ...]]:
    """Gives an engine new weights.

    Args:
        library: the module `tensorrt` or `tensorrt_rtx`.
        log: its logger, which keeps the errors.
        engine: loaded, and refittable.
        changed: the new values by name.
        known: the values of all weights of the model. An engine may have fused a weight with others, and then wants
            those again too.

    Returns:
        The new plan, and the names that were set beside those of `changed`.

    Raises:
        BuildError: the engine is not refittable, or TensorRT refuses a weight or the refit.
    """
    if not engine.refittable:
        raise BuildError("the engine is not refittable; build it with --refit")
    refitter = library.Refitter(engine, log)
    held: dict[str, Array] = {}  # TensorRT reads them where they are, until the refit is done

    def give(name: str) -> None:
        if name not in known:
            raise BuildError(f"the engine wants the weights '{name}' too, which the model does not have")
        held[name] = np.ascontiguousarray(known[name])
        if not refitter.set_named_weights(name, _as_weights(library, held[name])):
            raise BuildError(f"TensorRT refuses new weights '{name}' {held[name].shape}: {first_error(log)}")

    for name in changed:
        give(name)
    also = _give_missing(refitter, give)
    if not refitter.refit_cuda_engine():
        raise BuildError(f"the refit fails: {first_error(log)}")
    return _serialize(library, engine), also


def _give_missing(refitter: Any, give: Callable[[str], None]) -> tuple[str, ...]:
    """Supplies what the engine has fused with the weights that were set."""
    missing = tuple(dict.fromkeys(refitter.get_missing_weights()))
    for name in missing:
        give(name)
    left = refitter.get_missing_weights()
    if left:
        raise BuildError(f"the engine still wants weights after all were given: {', '.join(left)}")
    return missing


def _as_weights(library: Any, values: Array) -> Any:
    """The values as TensorRT takes them; numpy itself has no bfloat16."""
    if values.dtype.name == "bfloat16":
        return library.Weights(library.DataType.BF16, values.ctypes.data, values.size)
    return library.Weights(values)


def _serialize(library: Any, engine: Any) -> bytes:
    """The plan with its weights, still refittable."""
    if not hasattr(engine, "create_serialization_config"):
        return bytes(engine.serialize())
    config = engine.create_serialization_config()
    config.clear_flag(library.SerializationFlag.EXCLUDE_WEIGHTS)
    if hasattr(library.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(library.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))
