"""Measures one network by the public functions of vsfix: what it says, and the worth of the task after each repair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ladder_scores import paired_interval
from real_entry import Array, Case, Network, Outputs

import vsfix

AS_TRAINED, DEFAULT, UNTOLD = "as trained", "default", "default, noise not told"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "match": {"method": "match", "refine": False},
    "match, refined": {"method": "match", "refine": True},
    "exact": {"method": "exact"},
    DEFAULT: {},
}
Row = dict[str, Any]


def measure(network: Network, case: Case, say: Callable[[str], None]) -> Row:
    """Everything of one network, as JSON takes it."""
    options = {"noise": case.noise, "samples": network.samples}
    row: Row = {
        "name": network.name,
        "task": network.task,
        "weights": network.weights,
        "noise": network.noise,
        "reaches": list(network.reaches),
        "source": network.source,
        "metrics": [[metric.name, metric.higher_is_better, metric.digits] for metric in case.metrics],
        "facts": list(case.facts),
        "rows": len(next(iter(case.rows.values()))),
        "parity_db": case.parity_db,
        "parity_with": case.parity_with,
    }
    before = case.score(outputs(case.model, case.test))
    row["units"] = len(before[0])
    row["ways"] = {AS_TRAINED: {"values": [float(array.mean()) for array in before]}}
    say(f"as trained: {row['ways'][AS_TRAINED]['values']}")
    lost = case.model if case.lost is None else case.lost
    row["told"] = _inspected(lambda: vsfix.inspect(case.model, dict(case.rows), **options))
    say(f"told: {row['told']['verdict']}")
    untold: dict[str, Any] = {}
    row["untold"] = _inspected(lambda: vsfix.inspect(lost, dict(case.rows), **untold))
    say(f"untold: {row['untold']['verdict']}")
    repaired: onnx.ModelProto | None = None
    for way, how in WAYS.items():
        way_options = options | ({"samples": None} if way == "exact" else {})
        row["ways"][way], written = _way(case, case.model, before, way_options | dict(how))
        repaired = written if way == "match" else repaired
        say(f"{way}: {row['ways'][way]}")
    row["ways"][UNTOLD], _ = _way(case, lost, before, untold)
    say(f"{UNTOLD}: {row['ways'][UNTOLD]}")
    row["engine"] = _engine(case, repaired)
    say(f"TensorRT-RTX: {row['engine']}")
    return row


def outputs(model: onnx.ModelProto, inputs: Outputs, at_once: int = 32) -> dict[str, Array]:
    """The outputs of a file by ONNX Runtime on one thread, noise off."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {entry.name for entry in session.get_inputs()}
    count = len(next(iter(inputs.values())))
    parts = [
        session.run(names, {key: array[row : row + at_once] for key, array in inputs.items() if key in wanted})
        for row in range(0, count, at_once)
    ]
    return {name: np.concatenate([part[number] for part in parts]) for number, name in enumerate(names)}


def _inspected(look: Callable[[], vsfix.Inspection]) -> Row:
    started = time.perf_counter()
    try:
        found = look()
    except vsfix.VsfixError as error:
        return {"verdict": f"{type(error).__name__}: {error}", "status": "error"}
    severity = found.severity
    return {
        "status": found.status,
        "verdict": found.verdict,
        "severity": None if severity is None else [severity.ratio, severity.low, severity.high, severity.bound],
        "batch_norms": len(found.rows),
        "reached": sum(bool(row.noise) for row in found.rows),
        "shifts": [row.measured_shift for row in found.rows],
        "inferred": found.inferred,
        "outputs": list(found.outputs),
        "warnings": list(found.warnings),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _way(
    case: Case, model: onnx.ModelProto, before: tuple[Array, ...], options: Mapping[str, Any]
) -> tuple[Row, onnx.ModelProto | None]:
    """What one way to optimize gives on the test samples, and its file; a refused repair is measured and named."""
    started, refused = time.perf_counter(), ""
    try:
        result = vsfix.optimize(model, dict(case.rows), **options)
    except vsfix.RefusedRepairError as error:
        result, refused = error.result, str(error)
    except vsfix.VsfixError as error:
        return {"error": f"{type(error).__name__}: {error}"}, None
    seconds = time.perf_counter() - started
    after = case.score(outputs(result.model, case.test))
    report = result.report
    row = {
        "values": [float(array.mean()) for array in after],
        "differences": [
            list(paired_interval(new.astype(np.float64), old.astype(np.float64)))
            for new, old in zip(after, before, strict=True)
        ],
        "status": result.status,
        "verdict": result.verdict,
        "method": report.method,
        "severity": [None if s is None else s.ratio for s in (report.severity_before, report.severity_after)],
        "refused": refused,
        "seconds": round(seconds, 1),
    }
    return row, result.model


def _engine(case: Case, repaired: onnx.ModelProto | None) -> str:
    """Whether TensorRT-RTX builds the matched file, or the given one where there is none."""
    try:
        model = case.model if repaired is None else repaired
        shapes = {name: (1, *array.shape[1:]) for name, array in case.test.items()}
        built = vsfix.build(model, runtime="tensorrt-rtx", targets=["sm89"], shapes=shapes)
    except vsfix.VsfixError as error:
        return f"{type(error).__name__}: {error}"
    return f"{built.status}: {built.verdict}"
