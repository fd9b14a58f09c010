"""A model in eight bits, judged against itself in float32.

ModelOpt decides where Q/DQ pairs stand and by what scales; it is called on the repaired and folded graph, since ranges
that were measured on a damaged network belong to it alone. What comes back is not believed but counted: it ends without
an error where it quantised nothing. For int8 it is asked twice, for ranges that hold every value (max) and for ranges
that lose the least information (entropy), and what is nearer to float32 on the calibration data is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from vsfix.graph_passes.errors import CheckFailedError, InputError
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.precision.precision import stated_precision
from vsfix.graph_passes.precision.quantized_layers import (
    QuantizedLayers,
    find_quantized_layers,
    leave_unquantized,
    quantized_nodes,
)
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, count_samples, first_samples, prescribed_batch_size, samples_in
from vsfix.pipeline.host.quantizer import Method, QuantizerCall, find_quantizer, quantize_file

from .cast_judge import CastJudge
from .casting import CastModel, PrecisionReport
from .putting_back import PuttingBack, put_back

METHODS: Mapping[str, tuple[Method, ...]] = {"int8": ("max", "entropy"), "fp8": ("max",)}
MIN_SNR_DB = 20.0
_SAMPLES_OF_A_RUN = 32
_JUDGED_SAMPLES = 256
_INPUT = "vsfix_input_"


def require_calibration(precision: str, batches: Sequence[Batch]) -> None:
    """Fails before any work is done where a quantisation can't be.

    Raises:
        InputError: no calibration data: ModelOpt would take random numbers; or data that it can't cut into runs.
        MissingComponentError: ModelOpt is not here.
    """
    if not batches:
        raise InputError(f"--precision {precision}: the ranges of activations come from data; give it with --data")
    for name, array in batches[0].items():
        if np.ndim(array) == 0:
            raise InputError(
                f"--precision {precision}: input '{name}' has no batch axis, by which ModelOpt cuts the data; "
                "make it a constant of the model, or take --precision fp16"
            )
    find_quantizer()


@stage("quantizing")
def quantize_model(
    model: onnx.ModelProto,
    precision: str,
    batches: Sequence[Batch],
    open_model: OpenModel,
    *,
    judge: CastJudge | None = None,
    keep: float | None = None,
) -> CastModel:
    """Quantises a model and compares it with what it was.

    Args:
        model: a repaired and folded model in float32; not changed.
        precision: `int8` or `fp8`.
        batches: the calibration data, at least one batch.
        open_model: the runtime.
        judge: of this model; its labels judge where it has some. None for one of the calibration data alone.
        keep: the share of the metric that is to be kept; the layers that cost most are left in float32 for it. None to
            take them as ModelOpt quantises them.

    Raises:
        InputError: a model in another precision.
        MissingComponentError: ModelOpt is not here.
        CheckFailedError: ModelOpt fails, quantises nothing or a weight per tensor, or the outputs differ by more than
            the judge accepts.
    """
    graph = import_graph(model)
    found, prescribed = stated_precision(graph), prescribed_batch_size(graph)
    if found != "fp32":
        raise InputError(f"--precision {precision}: wants a float32 model, and this one is {found}")
    samples_of_run = prescribed or min(_SAMPLES_OF_A_RUN, count_samples(batches))
    inputs = _calibration_set(batches, samples_of_run)
    with TemporaryDirectory() as folder:
        call = _prepare(Path(folder), model, precision, inputs, samples_of_run)
        candidates = {method: _run(replace(call, method=method), model) for method in METHODS[precision]}
    if judge is None:
        judge = CastJudge(model, first_samples(batches, _JUDGED_SAMPLES, whole=prescribed is not None), open_model)
    best = _nearest(candidates, judge)
    final, back = candidates[best], None
    if keep is not None:
        back = _put_back(final, model, precision, judge, keep)
        final = _without_quantization(final, model, back.names)
    judged = judge.judgement([final], precision, MIN_SNR_DB, keep)
    layers = find_quantized_layers(import_graph(final))
    returned = frozenset() if back is None else back.names
    report = PrecisionReport(
        precision=precision,
        opset=next(entry.version for entry in final.opset_import if entry.domain in ("", "ai.onnx")),
        raised_for="QuantizeLinear",
        layers={precision: len(layers.quantized), "float32": len(layers.plain)},
        kept=tuple(f"{name}: left in float32 by ModelOpt" for name in layers.plain if name not in returned),
        judge=judge.runtime,
        samples=judge.samples,
        snr_db=judged.snr_db,
        calibration=f"{best} over {samples_in(inputs)} samples",
        scores=judged.scores,
        put_back=back,
        warnings=(*judged.warnings, *(() if back is None else back.doubts)),
    )
    return CastModel(final, final, report)


def _nearest(candidates: Mapping[Method, onnx.ModelProto], judge: CastJudge) -> Method:
    """The method whose outputs differ least from those of the model."""
    judged = {method: judge.snr_db(judge.outputs(candidate)) for method, candidate in candidates.items()}
    return max(judged, key=lambda method: judged[method])


def _without_quantization(quantized: onnx.ModelProto, model: onnx.ModelProto, names: frozenset[str]) -> onnx.ModelProto:
    """A quantised model in which some nodes read float32."""
    graph = import_graph(quantized)
    leave_unquantized(graph, import_graph(model), names)
    return export_model(graph, quantized)


def _put_back(
    quantized: onnx.ModelProto, model: onnx.ModelProto, precision: str, judge: CastJudge, keep: float
) -> PuttingBack:
    """The layers that are put back to float32 until the share is kept."""
    layers = quantized_nodes(import_graph(quantized))

    def snr_db(wide: frozenset[str]) -> float:
        return judge.snr_db(judge.outputs(_without_quantization(quantized, model, wide)))

    def kept(wide: frozenset[str]) -> float:
        return judge.kept([_without_quantization(quantized, model, wide)])

    return put_back(layers, snr_db, kept, keep, judge.subject, precision)


def _calibration_set(batches: Sequence[Batch], samples_of_run: int) -> dict[str, Array]:
    """All samples of all batches, as many as fill whole runs."""
    inputs = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    whole = samples_in(inputs) // samples_of_run * samples_of_run
    return {name: array[:whole] for name, array in inputs.items()}


def _prepare(
    folder: Path, model: onnx.ModelProto, precision: str, inputs: Mapping[str, Array], samples_of_run: int
) -> QuantizerCall:
    """Writes what ModelOpt reads, the inputs under names that its command line takes: a comma would end one there."""
    graph = import_graph(model)
    arrays: dict[str, Any] = {}
    for index, tensor in enumerate(graph.inputs):
        arrays[f"{_INPUT}{index}"] = inputs[tensor.name]
        tensor.name = f"{_INPUT}{index}"
    call = QuantizerCall(
        model=folder / "model.onnx",
        data=folder / "data.npz",
        shapes={name: (samples_of_run, *array.shape[1:]) for name, array in arrays.items()},
        output=folder / "quantized.onnx",
        precision=precision,
    )
    write_model(export_model(graph, model), call.model, force=False)
    np.savez(call.data, **arrays)
    return call


def _run(call: QuantizerCall, model: onnx.ModelProto) -> onnx.ModelProto:
    """One call of ModelOpt; what comes back is counted, and says of itself what the model said."""
    call.output.unlink(missing_ok=True)
    quantize_file(find_quantizer(), call)
    quantized = read_model(call.output)
    graph = import_graph(quantized)
    _require_layers(find_quantized_layers(graph), stated_precision(graph), call.precision)
    known = import_graph(model)
    given = [f"{_INPUT}{index}" for index in range(len(known.inputs))]
    outputs = [tensor.name for tensor in known.outputs]
    for side, before, tensors in (("input", given, graph.inputs), ("output", outputs, graph.outputs)):
        after = [tensor.name for tensor in tensors]
        if before != after:
            raise CheckFailedError(f"ModelOpt renamed an {side}: {before} became {after}; nothing is written")
    for tensor, named in zip(graph.inputs, known.inputs, strict=True):
        tensor.name = named.name
    return export_model(graph, model)


def _require_layers(layers: QuantizedLayers, found: str, precision: str) -> None:
    """Refuses a graph in which nothing, or not the right thing, is quantised."""
    if not layers.quantized or found != precision:
        raise CheckFailedError(
            f"--precision {precision}: of {layers.total} layers with a weight ModelOpt quantised "
            f"{len(layers.quantized)}, the graph is {found}; nothing is written"
        )
    if layers.per_tensor:
        raise CheckFailedError(
            f"ModelOpt gave the weight of '{layers.per_tensor[0]}' one scale for all of its channels "
            f"({len(layers.per_tensor)} layers): after a fold small channels would be lost; nothing is written"
        )
    if layers.split:
        raise CheckFailedError(
            f"ModelOpt put Q/DQ before BatchNorm '{layers.split[0]}', which no runtime can fold then; leave "
            "--no-fold out"
        )
