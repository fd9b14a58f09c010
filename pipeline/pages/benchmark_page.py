"""A benchmark as a page."""

from __future__ import annotations

from pathlib import Path

from vsfix.pipeline.benchmark.latency import Latency
from vsfix.pipeline.benchmark.result import Benchmark, Row
from vsfix.pipeline.report.benchmark_table import best_throughput, smallest_batch
from vsfix.pipeline.report.sections import BenchmarkRow, ErrorBudget, LatencySeries, Provenance, Report

from .benchmark_details import file_table, tensor_table, time_table
from .page import write_report


def write_benchmark_page(found: Benchmark, path: Path, *, force: bool) -> None:
    """Writes the report of a benchmark.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    write_report(benchmark_report(found), path, force=force)


def benchmark_report(found: Benchmark) -> Report:
    """The sections of a benchmark."""
    facts = {label: value for label, value in found.environment.items() if label != "command"}
    return Report(
        title=f"Benchmark on {found.samples} samples of {found.data}",
        status=found.status,
        verdict=found.verdict,
        warnings=found.notes,
        repair=found.repairs.report if found.repairs is not None else None,
        is_trial=True,
        accuracies=found.repairs.accuracies if found.repairs is not None else (),
        benchmark=tuple(_benchmark_row(row) for row in found.rows),
        tensors=tensor_table(found.rows),
        times=time_table([(_name(row, latency), latency) for row in found.rows for latency in row.latencies]),
        files=file_table(found.rows),
        benchmark_reference=found.reference,
        budgets=tuple(
            _budget(row, found)
            for row in sorted(found.rows, key=_comes_later)
            if row.budget and row.label != found.reference
        ),
        latencies=tuple(
            latency_series(_name(row, latency), latency) for row in found.rows for latency in row.latencies
        ),
        provenance=Provenance(found.environment.get("command", ""), facts),
    )


def latency_series(name: str, latency: Latency) -> LatencySeries:
    """A measured latency as the page draws it."""
    return LatencySeries(
        name=name,
        batch_size=latency.batch_size,
        milliseconds=latency.percentiles,
        runs=latency.runs,
        ratio=latency.ratio,
        ratio_interval=None if latency.is_baseline else latency.ratio_interval,
    )


def _name(row: Row, latency: Latency) -> str:
    """A row, of an engine with a word on its CUDA graph."""
    return row.label + {None: "", True: ", CUDA graph", False: ", no CUDA graph"}[latency.cuda_graph]


def _benchmark_row(row: Row) -> BenchmarkRow:
    """One row; its latency is that of the smallest batch size, its throughput the best of all."""
    reference, unrepaired, latency = row.against_reference, row.against_unrepaired, smallest_batch(row)
    like = row.against_own if row.score is not None else reference
    return BenchmarkRow(
        model=row.model,
        backend=row.backend,
        precision=row.precision,
        score=row.score,
        gain=reference.difference if reference is not None else None,
        retention=row.against_own.retention if row.against_own is not None else None,
        agreement=like.decisions.agreement if like is not None and like.decisions is not None else None,
        cosine=like.cosine if like is not None else None,
        snr_db=like.snr_db if like is not None else None,
        batch_size=latency.batch_size if latency is not None else None,
        p50_ms=latency.p50_ms if latency is not None else None,
        p99_ms=latency.p99_ms if latency is not None else None,
        images_per_second=best_throughput(row),
        repaired=row.repaired,
        status=row.status,
        note="; ".join(row.reasons),
        repair_gain=unrepaired.difference if unrepaired is not None else None,
    )


def _comes_later(row: Row) -> bool:
    """The budgets of repaired rows are what a reader looks for first."""
    return not row.repaired


def _budget(row: Row, found: Benchmark) -> ErrorBudget:
    """The steps from the reference to a row."""
    return ErrorBudget(row.label, found.reference, row.budget, found.reference_row.score, row.repaired)
