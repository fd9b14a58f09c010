"""Measures one network by the public functions of vsfix: what it says, and the worth of the task after each repair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from ladder_scores import FIRST_SEED, file_outputs, paired_interval, sample_set
from real_entry import Array, Case, Network

import vsfix
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.inspection.preparation import prepare_model

AS_TRAINED, MATCHED, DEFAULT, UNTOLD = "as trained", "match", "default", "default, noise not told"
REFINED = "match, refined"
AVERAGE, DRAWS = "mean of 8 noisy passes", 8
AT_ONCE = 32  # samples of a run
WAYS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    MATCHED: {"method": "match", "refine": False},
    "exact": {"method": "exact"},
    REFINED: {"method": "match", "refine": True},
}
SKIPPABLE = (MATCHED, "exact", REFINED, AVERAGE)
Row = dict[str, Any]


def measure(
    network: Network,
    case: Case,
    row: Row,
    keep: Callable[[], None],
    say: Callable[[str], None],
    skip: Sequence[str] = (),
) -> None:
    """Measures what a row lacks, and keeps it after each step.

    Args:
        network: the entry.
        case: what it made.
        row: what was measured before, or nothing; filled in place.
        keep: writes it.
        say: somebody who is told.
        skip: of `SKIPPABLE`, what is left out.
    """
    before = case.score(file_outputs(case.model, case.test, AT_ONCE))
    for key, value in (_described(network, case) | {"units": len(before[0])}).items():
        row.setdefault(key, value)
    ways = row.setdefault("ways", {})
    ways[AS_TRAINED] = {"values": [float(array.mean()) for array in before]}
    lost = case.model if case.lost is None else case.lost
    options: dict[str, Any] = {"noise": case.noise, "samples": network.samples}
    written: dict[str, onnx.ModelProto] = {}

    def optimized(way: str, model: onnx.ModelProto, how: Mapping[str, Any]) -> Row:
        found, repaired = _way(case, model, before, how)
        if repaired is not None:
            written[way] = repaired
        return found

    def engine() -> str:
        if MATCHED not in written:  # it is skipped, or an earlier call measured it
            repair(MATCHED)
        if MATCHED in written:
            return _engine(case, written[MATCHED])
        return f"{_engine(case, vsfix.optimize(case.model, method='none').model)} As trained: match is refused."

    def _how(way: str) -> dict[str, Any]:
        return options | ({"samples": None} if way == "exact" else {}) | dict(WAYS[way])

    def repair(way: str) -> Row:
        return optimized(way, case.model, _how(way))

    steps: list[tuple[Row, str, Callable[[], Any]]] = [
        (row, "told", lambda: _inspected(case, case.model, **options)),
        (row, "untold", lambda: _inspected(case, lost)),
        (ways, DEFAULT, partial(repair, DEFAULT)),
        (ways, UNTOLD, lambda: optimized(UNTOLD, lost, {})),
        (ways, MATCHED, partial(repair, MATCHED)),
        (row, "engine", engine),
        (ways, "exact", partial(repair, "exact")),
        (ways, AVERAGE, lambda: _compared(case.score(noise_average(case)), before)),
        (ways, REFINED, partial(repair, REFINED)),  # last, since it takes longest
    ]
    for place, key, step in steps:
        if key in place or key in skip:
            continue
        started = time.perf_counter()
        place[key] = step()
        say(f"{key}, {time.perf_counter() - started:.0f} s: {str(place[key])[:300]}")
        keep()


def is_complete(row: Row, skip: Sequence[str] = ()) -> bool:
    """Whether nothing is missing but what is left out."""
    wanted = {*WAYS, UNTOLD, AVERAGE} - set(skip)
    return is_shown(row) and {"untold", "engine"} <= set(row) and wanted <= set(row["ways"])


def is_shown(row: Row) -> bool:
    """Whether it is known what the default does."""
    return "told" in row and DEFAULT in row["ways"]


def _described(network: Network, case: Case) -> Row:
    return {
        "name": network.name,
        "task": network.task,
        "weights": network.weights,
        "noise": network.noise,
        "reaches": list(network.reaches),
        "source": network.source,
        "metrics": [[metric.name, metric.higher_is_better, metric.digits] for metric in case.metrics],
        "rows": len(next(iter(case.rows.values()))),
        "parity_db": case.parity_db,
        "parity_with": case.parity_with,
    }


def noise_average(case: Case) -> dict[str, Array]:
    """The mean of the outputs over noisy passes, that of a classifier as logarithms of mean probabilities."""
    prepared = prepare_model(case.model, case.noise, needs_batch_norms=False)
    samples = sample_set(case.test, AT_ONCE)
    average = NoiseAverage(prepared.graph, samples, open_for_small_runs, FIRST_SEED)
    sums: dict[str, Array] = {}
    for run in average.runs(range(DRAWS)):
        for name, array in run.arrays.items():
            wide = array.astype(np.float64)
            if case.is_classifier:
                wide = np.exp(wide - wide.max(1, keepdims=True))
                wide /= wide.sum(1, keepdims=True)
            held = sums.setdefault(name, np.zeros((len(samples), *array.shape[1:])))
            held[run.first : run.first + len(array)] += wide / DRAWS
    return {name: np.log(array) if case.is_classifier else array for name, array in sums.items()}


def _inspected(case: Case, model: onnx.ModelProto, **options: Any) -> Row:
    """What vsfix says of a file."""
    started = time.perf_counter()
    try:
        found = vsfix.inspect(model, dict(case.rows), **options)
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
    after = case.score(file_outputs(result.model, case.test, AT_ONCE))
    report = result.report
    row = _compared(after, before) | {
        "status": result.status,
        "verdict": result.verdict,
        "method": report.method,
        "severity": [None if s is None else s.ratio for s in (report.severity_before, report.severity_after)],
        "refused": refused,
        "seconds": round(seconds, 1),
    }
    return row, result.model


def _compared(after: tuple[Array, ...], before: tuple[Array, ...]) -> Row:
    """Means, and the mean differences with their 95 % intervals, paired by unit."""
    pairs = zip(after, before, strict=True)
    return {
        "values": [float(array.mean()) for array in after],
        "differences": [list(paired_interval(new.astype(np.float64), old.astype(np.float64))) for new, old in pairs],
    }


def _engine(case: Case, repaired: onnx.ModelProto) -> str:
    """Whether TensorRT-RTX builds a file."""
    try:
        shapes = {name: (1, *array.shape[1:]) for name, array in case.test.items()}
        built = vsfix.build(repaired, runtime="tensorrt-rtx", targets=["sm89"], shapes=shapes)
    except vsfix.VsfixError as error:
        return f"{type(error).__name__}: {error}"
    return f"{built.status}: {built.verdict}"
