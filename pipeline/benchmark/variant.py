"""One model on one backend in one precision, and which of them a benchmark is made of.

A checkpoint and an engine run as they are. An ONNX file in float32 is deployed in each precision that is asked for;
with `tensorrt` or `tensorrt-rtx` as the backend an engine of it is built. TF32 is something that only an engine has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.backends.model_kind import ModelKind
from vsfix.pipeline.backends.opening import BACKENDS, runs_kind
from vsfix.pipeline.comparison.tolerance import TOLERANCES
from vsfix.pipeline.tensorrt.library import RUNTIMES
from vsfix.pipeline.verification.model_description import ModelDescription

PRECISIONS = tuple(TOLERANCES)


@dataclass(frozen=True)
class Variant:
    """One row of a benchmark.

    Attributes:
        model: the file.
        backend: what runs it.
        precision: that it computes in.
    """

    model: ModelDescription
    backend: str
    precision: str

    @property
    def label(self) -> str:
        """The row in words, as `net.onnx, onnxruntime, fp16`; the file as it was named."""
        return f"{self.model.label}, {self.backend}, {self.precision}"

    @property
    def is_built(self) -> bool:
        """Whether an engine has to be built first."""
        return self.model.kind == "onnx" and self.backend in RUNTIMES


def plan_variants(
    models: Sequence[ModelDescription], backends: Sequence[str], precisions: Sequence[str]
) -> tuple[Variant, ...]:
    """Every model on each backend that runs it, in each precision that is available for it.

    Args:
        models: the first is the reference.
        backends: in the order of the rows; none for the usual one of each model.
        precisions: likewise; none for that of each file.

    Raises:
        InputError: a name that there is not, or that leads to no row; a model that no named backend runs.
    """
    _require_known("backend", backends, BACKENDS)
    _require_known("precision", precisions, PRECISIONS)
    variants = [
        Variant(model, backend, precision)
        for model in models
        for backend in _backends_of(model, backends)
        for precision in _precisions_of(model, backend, precisions)
    ]
    for name in backends:
        if name not in {variant.backend for variant in variants}:
            raise InputError(f"--backend {name}: runs none of these models; leave it out")
    for name in precisions:
        if name not in {variant.precision for variant in variants}:
            raise InputError(
                f"--precision {name}: casts ONNX files in fp32, and tf32 is for engines alone; none of these models is "
                "run in it, so leave it out"
            )
    return tuple(dict.fromkeys(variants))


def _require_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuses a name that there is not."""
    for name in names:
        if name not in known:
            raise InputError(f"--{what} {name}: unknown; there are {', '.join(known)}")


def _backends_of(model: ModelDescription, backends: Sequence[str]) -> Sequence[str]:
    """Those of the named ones that run the model."""
    if not backends:
        return (model.backend,)
    found = [backend for backend in backends if _can_run(backend, model.kind)]
    if not found:
        raise InputError(
            f"{model.path}: none of the backends {', '.join(backends)} runs it; add --backend {model.backend}"
        )
    return found


def _can_run(backend: str, kind: ModelKind) -> bool:
    """Whether a backend runs such a file, or an engine that is built of it."""
    return runs_kind(backend, kind) or (kind == "onnx" and backend in RUNTIMES)


def _precisions_of(model: ModelDescription, backend: str, precisions: Sequence[str]) -> Sequence[str]:
    """Those of the named ones that are available for the model, its own where it has no other."""
    if not precisions or model.kind != "onnx" or model.precision != "fp32":
        return (model.precision,)
    return [name for name in precisions if name != "tf32" or backend in RUNTIMES]
