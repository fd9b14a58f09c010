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
from vsfix.pipeline.comparison.decisions import Decisions
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.proportion import Proportion
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
        decisions: of the first output.
    """

    baseline: str
    outputs: Mapping[str, TensorComparison]
    decisions: Decisions

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
        top1: right answers; None where it did not run.
        top5: likewise, where there are more than five classes.
        against_reference: the first row of the benchmark; None for itself and where nothing ran.
        against_own: the first row of the same model; None for itself and where nothing ran.
        against_unrepaired: of the first row of a repaired model: the row before it that shows the model as it was
            before; None where no row does, and for every other row.
        difference_interval: 95 %, of top-1 less that of `against_reference`; None where there is no such row.
        retention_bar: the highest of 0.999 and 0.99 that its retention of the top-1 of `against_own` reaches, 0 below
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
    top1: Proportion | None = None
    top5: Proportion | None = None
    against_reference: Comparison | None = None
    against_own: Comparison | None = None
    against_unrepaired: Comparison | None = None
    difference_interval: tuple[float, float] | None = None
    retention_bar: float | None = None
    layers: LayerSearch | None = None
    budget: tuple[BudgetStep, ...] = ()
    latencies: tuple[Latency, ...] = ()
    latency_note: str = ""


@dataclass(frozen=True)
class RepairTrials:
    """The first model that is not repaired, repaired in this run by several methods.

    Attributes:
        model: the file, as it was named.
        report: of the first repair that was not refused; None without one.
        accuracies: as trained, then one for each repair; `model` is its method, `images` its number of images.
        refused: the methods that gave no repair, each with the reason.
    """

    model: str
    report: RepairReport | None
    accuracies: tuple[AccuracyRow, ...]
    refused: tuple[str, ...] = ()


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
        reference: the label of the row that the others are held against: the first that ran.
        rows: in the order of the models, the backends, the precisions.
        repairs: None where none were asked for or could be tried.
        notes: what a person should know before trusting the numbers.
        environment: versions, machine, command line, date.
        predictions: the top-1 class of every sample by row label, shape (N,), -1 where an output is not finite; and
            the labels under `labels`. Not part of the JSON.
    """

    status: Status
    verdict: str
    data: str
    split: str | None
    samples: int
    digest: str
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
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def write_predictions(found: Benchmark, path: Path, *, force: bool) -> None:
    """Writes an `.npz` file: the top-1 class of each sample under the label of each row, and `labels`, shape (N,) each.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    arrays: dict[str, Any] = dict(found.predictions)
    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
