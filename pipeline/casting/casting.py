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
from vsfix.graph_passes.ir.element_types import FLOAT, FLOAT16
from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.precision.precision import CastPrecision, count_float_types, parse_precision
from vsfix.graph_passes.precision.rounded_activations import emulate
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, samples_in
from vsfix.pipeline.comparison.tensor_comparison import comparable, compare_tensors

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
def cast_model(model: onnx.ModelProto, precision: str, inputs: Batch, open_model: OpenModel) -> CastModel:
    """Casts a model and compares it with what it was.

    Args:
        model: a repaired and folded model; not changed.
        precision: `fp32`, `fp16` or `bf16`.
        inputs: one batch to compare on; empty where there is none.
        open_model: the runtime.

    Raises:
        InputError: another precision.
        ModelError: an operator that can't be cast.
        CheckFailedError: a weight that the type can't hold, or an output that differs from that before the cast.
    """
    code = parse_precision(precision)
    graph = import_graph(model)
    opset, reason = lowest_opset(graph, code)
    source = model
    if reason:
        source = raise_opset(model, opset, code, reason)
        graph = import_graph(source)
    cast = CastPrecision(precision)
    result = cast(graph)
    final = export_model(graph, source)
    runnable = final if code == FLOAT else emulate(final, code)
    candidates = [final, runnable] if code == FLOAT16 else [runnable]
    judge, snr_db = _judge(model, candidates, inputs, open_model, precision)
    loss = cast.loss
    report = PrecisionReport(
        precision=precision,
        opset=opset,
        raised_for=reason,
        layers=count_float_types(graph),
        kept=tuple(f"{kept.subject}: {kept.reason}" for kept in result.skipped),
        rounded_tensors=loss.tensors,
        rounded_values=loss.values,
        to_zero=loss.zeros,
        to_subnormal=loss.subnormals,
        saturated=loss.saturated,
        dead_channels=loss.dead,
        judge=judge,
        samples=samples_in(inputs) if inputs else 0,
        snr_db=snr_db,
    )
    return CastModel(final, runnable, report)


def _judge(
    model: onnx.ModelProto,
    candidates: list[onnx.ModelProto],
    inputs: Batch,
    open_model: OpenModel,
    precision: str,
) -> tuple[str, float | None]:
    """The judge in words, and the smallest SNR of any candidate's output; refuses one below the gate."""
    if not inputs:
        return "", None
    with open_model(model) as runner:
        judge, expected = runner.name, runner.run(inputs)
    if precision != "fp32":
        judge += f", float32 with every weight and activation rounded to {precision}"
    worst = np.inf
    for candidate in candidates:
        with open_model(candidate) as runner:
            worst = min(worst, smallest_snr(expected, runner.run(inputs)))
    if not worst >= MIN_SNR_DB[precision]:
        raise CheckFailedError(
            f"refused: in {precision} the model differs from what it was (SNR {worst:.1f} dB, wanted "
            f"{MIN_SNR_DB[precision]:.0f}); nothing is written; "
            + ("try --precision bf16" if precision == "fp16" else "leave the precision as it is")
        )
    return judge, None if np.isinf(worst) else worst


def smallest_snr(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The smallest signal to noise ratio of an output, in dB.

    Over the float outputs; whole numbers, as those of ArgMax, count only where there is nothing else.
    """
    names = [name for name, array in expected.items() if array.dtype.kind == "f"] or list(expected)
    return min(compare_tensors(*comparable(expected[name], found[name])).snr_db for name in names)
