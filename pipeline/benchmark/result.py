"""The result of a benchmark as plain data: the terminal's table, the JSON and the page are three views of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.ir.runtime import Array
from vsfix.pipeline.casting.casting import PrecisionReport
from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.decisions import Decisions, bar_of
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.score_difference import Score, ScoreDifference
from vsfix.pipeline.comparison.tensor_comparison import TensorComparison
from vsfix.pipeline.repair.repair_report import RepairReport

from .latency import Latency

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Comparison:
    """A row against another one, on the same samples.

    Attributes:
        baseline: the label of the other.
        outputs: the comparison of each output, by the row's name for it.
        output: the row's name for the judged output.
        decisions: of the judged output, position by position; None where it decides nothing.
        cosine: of the judged output, mean over the samples, where it decides nothing; None where it does, is one number
            a sample, which has no direction, or is not finite.
        difference: by the metric; None without labels.
        retention: the share of the metric that is kept, of errors the inverse of their ratio; None without labels, and
            where a ratio says nothing.
    """

    baseline: str
    outputs: Mapping[str, TensorComparison]
    output: str
    decisions: Decisions | None
    cosine: float | None = None
    difference: ScoreDifference | None = None
    retention: float | None = None

    @property
    def retention_bar(self) -> float | None:
        """The highest of `RETENTION_BARS` that the retention reaches, 0 below all; None where there is no retention."""
        return None if self.retention is None else bar_of(self.retention)

    @property
    def snr_db(self) -> float:
        """The smallest of the outputs', in dB."""
        return min(comparison.snr_db for comparison in self.outputs.values())


@dataclass(frozen=True)
class Row:
    """One model on one backend in one precision.

    Attributes:
        label: the row in words.
        model: the file, as it was named.
        backend: what ran it.
        precision: that it computes in.
        repaired: whether its statistics were repaired.
        status: PASS; WARN where it differs from its own model by more than its precision explains; SKIP where a
            component for it is missing here; FAIL where it could not be made or run for another reason.
        reasons: why it is not PASS.
        runner: what ran, with its provider or GPU; empty where nothing did.
        size: of the file that ran, in bytes.
        build_seconds: of TensorRT's builder; None where nothing was built.
        cast: what the cast to its precision did; None where it ran as it is.
        score: by the metric; None where it did not run, and without labels.
        top5: beside top-1, where there are more than five classes.
        against_reference: the first row of the benchmark; None for itself and where nothing ran.
        against_own: the first row of the same model; None for itself and where nothing ran.
        against_unrepaired: of the first row of a repaired model: the row before it that shows the model as it was
            before; None where no row does, and for every other row.
        retention_bar: the highest of 0.999 and 0.99 that its retention of the metric of `against_own` reaches, 0 below
            both; None where there is no retention.
        layers: where a row differs that is not PASS; None where nothing was searched. Of its tensors the first that
            differs and the worst are included.
        budget: the steps from the reference to this row, and the noise floor.
        latencies: one for each batch size; with and without a CUDA graph where the row is an engine.
        latency_note: why there are none.
    """

    label: str
    model: str
    backend: str
    precision: str
    repaired: bool
    status: Status
    reasons: tuple[str, ...] = ()
    runner: str = ""
    size: int = 0
    build_seconds: float | None = None
    cast: PrecisionReport | None = field(default=None, repr=False)
    score: Score | None = None
    top5: Score | None = None
    against_reference: Comparison | None = None
    against_own: Comparison | None = None
    against_unrepaired: Comparison | None = None
    retention_bar: float | None = None
    layers: LayerSearch | None = None
    budget: tuple[BudgetStep, ...] = ()
    latencies: tuple[Latency, ...] = ()
    latency_note: str = ""

    @property
    def ran(self) -> bool:
        """Whether anything was measured."""
        return self.runner != ""


@dataclass(frozen=True)
class RepairTrials:
    """The first model that is not repaired, repaired in this run by several methods.

    Attributes:
        model: the file, as it was named.
        report: of the first repair that was not refused; None without one.
        accuracies: by the metric, as trained, then one for each repair; `model` is its method, `images` its number of
            images.
        refused: the methods that gave no repair, each with the reason.
    """

    model: str
    report: RepairReport | None
    accuracies: tuple[AccuracyRow, ...]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class JudgedBy:
    """The metric of a benchmark.

    Attributes:
        key: as `--metric` takes it.
        name: in words.
        output: the output that is judged; None where a function has them all.
        unit: of its values: `%`, or empty.
        higher_is_better: which way is better.
    """

    key: str
    name: str
    output: str | None
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Benchmark:
    """All of it.

    Attributes:
        status: PASS, WARN or FAIL.
        verdict: one sentence with the numbers.
        data: the labelled set.
        split: its part; None where it has none.
        samples: how many.
        digest: SHA-256 of the samples and their labels, by which two runs know that they saw the same.
        metric: None without labels.
        output: the output that is judged, and whose decisions are compared.
        reference: the label of the row that the others are held against: the first that ran.
        rows: in the order of the models, the backends, the precisions.
        repairs: None where none were asked for or could be tried.
        notes: what a person should know before trusting the numbers.
        environment: versions, machine, command line, date.
        predictions: by row label the classes of every sample, shape (N, ...), -1 where an output is not finite; where
            the metric has none the score of each, shape (N,), and without labels the judged output; and the labels
            under `labels`. Not part of the JSON.
    """

    status: Status
    verdict: str
    data: str
    split: str | None
    samples: int
    digest: str
    metric: JudgedBy | None
    output: str
    reference: str
    rows: tuple[Row, ...]
    repairs: RepairTrials | None
    notes: tuple[str, ...]
    environment: Mapping[str, str]
    predictions: Mapping[str, Array] = field(repr=False)

    @property
    def reference_row(self) -> Row:
        """The row of that label."""
        return next(row for row in self.rows if row.label == self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the predictions."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self) if entry.name != "predictions"}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Decisions):  # whose `task` is what `difference` says of any metric
        return {name: part for name, part in asdict(value).items() if name != "task"}
    if isinstance(value, Comparison | Row):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def write_predictions(found: Benchmark, path: Path, *, force: bool) -> None:
    """Writes an `.npz` file: what `predictions` holds under the label of each row, and `labels`.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    arrays: dict[str, Any] = dict(found.predictions)
    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
