"""A model in the precision that was asked for, judged against itself in the precision that it had.

The judge is ONNX Runtime on a float32 graph in which every weight and activation is rounded to the narrow type (see
`rounded_activations`), since its CPU provider has no bfloat16 convolution and computes float16 wider than a GPU does.
A float16 model is also run as it will be written, and the worse of both counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.io.opset import lowest_opset, raise_opset
from vsfix.graph_passes.ir.element_types import FLOAT
from vsfix.graph_passes.ir.graph_pass import PassResult
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.precision.float_cast import AS_ASKED
from vsfix.graph_passes.precision.precision import (
    CastPrecision,
    count_float_types,
    layer_groups,
    nodes_of_layers,
    parse_precision,
    stated_precision,
)
from vsfix.graph_passes.precision.rounded_activations import emulate
from vsfix.graph_passes.precision.weight_rounding import RoundingLoss
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.comparison.score_difference import ScoreDifference

from .cast_judge import CastJudge, Judgement
from .putting_back import PuttingBack, put_back

# Rounding to b bits of fraction has a noise near 6 b + 11 dB below its signal: 71 dB with the 10 bits of float16, 53 dB
# with the 7 of bfloat16. Each layer adds its own, a network of 20 layers 13 dB. What is left below these gates is no
# rounding: an overflow, digits lost at the end of the range, or a network that is unsure of what it says.
MIN_SNR_DB = {"fp32": 40.0, "fp16": 40.0, "bf16": 25.0}


@dataclass(frozen=True)
class PrecisionReport:
    """The result of a cast.

    Attributes:
        precision: `fp32`, `fp16`, `bf16`, `int8` or `fp8`.
        opset: of the model now.
        raised_for: the node that asked for a higher opset than the file had; empty where none did.
        layers: how many nodes compute in each float type; of a quantised model, layers with a weight.
        kept: the nodes that keep another type, each with the reason.
        judge: what the cast graph was judged by, in words; empty where nothing was run.
        samples: how many it was judged on.
        snr_db: signal to noise against the model before the cast; None where equal to the bit, or nothing was run.
        calibration: how the ranges of a quantised model were found; empty for another.
        rounded_tensors: weights and other constants that were rounded; like what follows 0 for a quantised model.
        rounded_values: values in them.
        to_zero: values that were not zero and are now.
        to_subnormal: values left below the smallest normal number of the type, with fewer digits.
        saturated: bounds and masks past the range that became its largest number.
        dead_channels: channels that were dead in float32 and are zero or subnormal now.
        scores: what labels say of it against the model before the cast; None without, or with too few.
        put_back: the layers that were put back to float32; None where no share was to be kept.
        warnings: what a person should know.
    """

    precision: str
    opset: int
    raised_for: str
    layers: Mapping[str, int]
    kept: tuple[str, ...]
    judge: str
    samples: int
    snr_db: float | None
    calibration: str = ""
    rounded_tensors: int = 0
    rounded_values: int = 0
    to_zero: int = 0
    to_subnormal: int = 0
    saturated: int = 0
    dead_channels: tuple[str, ...] = ()
    scores: ScoreDifference | None = None
    put_back: PuttingBack | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CastModel:
    """A model in another precision.

    Attributes:
        model: the model.
        runnable: what stands for it on the CPU: float32, with every weight and activation rounded.
        report: what was done.
    """

    model: onnx.ModelProto = field(repr=False)
    runnable: onnx.ModelProto = field(repr=False)
    report: PrecisionReport


@stage("casting")
def cast_model(
    model: onnx.ModelProto,
    precision: str,
    inputs: Batch,
    open_model: OpenModel,
    *,
    judge: CastJudge | None = None,
    keep: float | None = None,
) -> CastModel:
    """Casts a model and compares it with what it was.

    Args:
        model: a repaired and folded model; not changed.
        precision: `fp32`, `fp16` or `bf16`.
        inputs: one batch to compare on; empty where there is none.
        open_model: the runtime.
        judge: of this model; its labels judge where it has some. None for one of the inputs alone.
        keep: the share of the metric that is to be kept; the layers that cost most are left in float32 for it, which
            wants a judge with samples. None to cast every layer.

    Raises:
        InputError: another precision.
        ModelError: an operator that can't be cast.
        CheckFailedError: a weight that the type can't hold, or outputs that differ from those before the cast by more
            than the judge accepts.
    """
    code = parse_precision(precision)
    opset, reason = lowest_opset(import_graph(model), code)
    source = raise_opset(model, opset, code, reason) if reason else model
    judge = judge or CastJudge(model, [inputs] if inputs else [], open_model)
    back = None if keep is None else _put_back(source, precision, judge, keep)
    groups = layer_groups(import_graph(source)) if back is not None else {}
    cast = _cast(source, precision, frozenset() if back is None else nodes_of_layers(groups, back.names))
    kept = [f"{entry.subject}: {entry.reason}" for entry in cast.result.skipped if entry.reason != AS_ASKED]
    runtime, found = "", Judgement()
    if judge.batches:
        rounded = "" if precision == "fp32" else f", float32 with every weight and activation rounded to {precision}"
        runtime = judge.runtime + rounded
        found = judge.judgement(cast.candidates, precision, MIN_SNR_DB[precision], keep)
    loss = cast.loss
    report = PrecisionReport(
        precision=precision,
        opset=opset,
        raised_for=reason,
        layers=count_float_types(import_graph(cast.final)),
        kept=tuple(kept),
        rounded_tensors=loss.tensors,
        rounded_values=loss.values,
        to_zero=loss.zeros,
        to_subnormal=loss.subnormals,
        saturated=loss.saturated,
        dead_channels=loss.dead,
        judge=runtime,
        samples=judge.samples,
        snr_db=found.snr_db,
        scores=found.scores,
        put_back=back,
        warnings=(*found.warnings, *(() if back is None else back.doubts)),
    )
    return CastModel(cast.final, cast.runnable, report)


@dataclass(frozen=True)
class _Cast:
    """A model after one cast: the file, what stands for it on the CPU, and what was done."""

    final: onnx.ModelProto
    runnable: onnx.ModelProto
    result: PassResult
    loss: RoundingLoss

    @property
    def candidates(self) -> list[onnx.ModelProto]:
        """What is run of it; a float16 file as it is, too."""
        half = self.final if self.final is not self.runnable and _is_half(self.final) else None
        return [self.runnable] if half is None else [half, self.runnable]


def _is_half(model: onnx.ModelProto) -> bool:
    """Whether a model computes in float16."""
    return stated_precision(import_graph(model)) == "fp16"


def _cast(model: onnx.ModelProto, precision: str, kept: frozenset[str]) -> _Cast:
    """Casts a model but for some nodes."""
    graph, code = import_graph(model), parse_precision(precision)
    cast = CastPrecision(precision, kept)
    result = cast(graph)
    final = export_model(graph, model)
    return _Cast(final, final if code == FLOAT else emulate(final, code), result, cast.loss)


def _put_back(model: onnx.ModelProto, precision: str, judge: CastJudge, keep: float) -> PuttingBack:
    """The layers that are put back to float32 until the share is kept."""
    groups = layer_groups(import_graph(model))

    def cast(wide: frozenset[str]) -> _Cast | None:
        try:
            return _cast(model, precision, nodes_of_layers(groups, wide))
        except CheckFailedError:  # a value that the type can't hold
            return None

    def snr_db(wide: frozenset[str]) -> float:
        found = cast(wide)
        return -np.inf if found is None else judge.snr_db(judge.outputs(found.runnable))

    def kept(wide: frozenset[str]) -> float:
        found = cast(wide)
        return -np.inf if found is None else judge.kept(found.candidates)

    return put_back(list(groups), snr_db, kept, keep, judge.subject, precision)
