"""The sections of a page as plain data: every one is optional, and one that is not given leaves nothing on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.statistics.estimate import Interval
from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.score_difference import Score, ScoreDifference
from vsfix.pipeline.inspection.inspection import Inspection
from vsfix.pipeline.repair.label_judge import LabelScores
from vsfix.pipeline.repair.repair_report import RepairReport

from .table import Table


@dataclass(frozen=True)
class StepRow:
    """One verified step: status PASS or FAIL, and the numbers that it rests on."""

    step: str
    status: str
    snr_db: float
    max_abs: float
    agreement: float


@dataclass(frozen=True)
class BenchmarkRow:
    """One model on one backend in one precision; None for what was not measured or means nothing.

    Attributes:
        model: the file, or what it is called.
        backend: what ran it, as `--backend` takes it.
        precision: what it computes in, as `fp16`.
        score: by the metric, with its 95 % interval; None without labels.
        gain: over the reference; None for the reference itself.
        retention: of the metric of the first row of the same model, 1 where nothing is lost.
        agreement: share of equal decisions, in [0, 1], with that row, or without labels with the reference.
        cosine: mean over the samples, likewise, where nothing is decided.
        snr_db: likewise, the smallest of the outputs', in dB; infinite where they are equal to the bit.
        batch_size: samples per run of the timing.
        p50_ms: median latency of one run, in milliseconds.
        p99_ms: the latency that 99 of 100 runs stay below, in milliseconds.
        images_per_second: at the batch size where they are most.
        status: PASS, WARN, FAIL or SKIP; empty where nothing was judged.
        note: one sentence on it, as why the row is skipped.
        repaired: whether the statistics of the file were repaired.
        repair_gain: of the first row of such a file over the one before the repair; else None.
    """

    model: str
    backend: str
    precision: str
    score: Score | None = None
    gain: ScoreDifference | None = None
    retention: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    snr_db: float | None = None
    batch_size: int | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    images_per_second: float | None = None
    status: str = ""
    note: str = ""
    repaired: bool = False
    repair_gain: ScoreDifference | None = None


@dataclass(frozen=True)
class ErrorBudget:
    """The steps between a reference and one candidate.

    Attributes:
        candidate: what it is called.
        reference: what it is compared with.
        steps: in their order, the noise floor last.
        score: of the reference by the metric; None without labels.
        repaired: whether the candidate's statistics were repaired.
    """

    candidate: str
    reference: str
    steps: tuple[BudgetStep, ...]
    score: Score | None = None
    repaired: bool = False


@dataclass(frozen=True)
class LatencySeries:
    """The runs of one model.

    Attributes:
        name: what ran.
        batch_size: samples per run.
        milliseconds: the latency of each run, or their percentiles in even steps; at least one.
        runs: how many were timed, where `milliseconds` are percentiles.
        ratio: of the median to that of the first model on the same backend in the same precision; None where there is
            none.
        ratio_interval: of that ratio, 95 %; None for that first model itself.

    Raises:
        DataError: no runs, or a time that is no number.
    """

    name: str
    batch_size: int
    milliseconds: tuple[float, ...] = field(repr=False)
    runs: int | None = None
    ratio: float | None = None
    ratio_interval: Interval | None = None

    def __post_init__(self) -> None:
        if not self.milliseconds or not all(math.isfinite(time) for time in self.milliseconds):
            raise DataError(f"latencies of '{self.name}': at least one run is needed, each with a finite time")


@dataclass(frozen=True)
class Provenance:
    """The provenance of a page.

    Attributes:
        command: the command line, as a shell takes it; empty where none was given.
        facts: versions, machine, date and the like, label by label.
    """

    command: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """The sections of a page in their order; what is empty or None is left out.

    Attributes:
        title: the heading.
        status: PASS, WARN or FAIL.
        verdict: one sentence with the numbers.
        warnings: what a person should know before trusting the numbers, besides what repair or inspection say.
        repair: the BatchNorms before and after, and what was done to them.
        is_trial: whether the repair was made for its numbers alone, and not written.
        inspection: the BatchNorms of a model that was looked at only; not together with `repair`.
        accuracies: the metric by method and number of images.
        scores: what labelled data says of the file as given and of the repaired one.
        benchmark: one row for each model, backend and precision.
        tensors: the outputs of each such row against those of another; see `benchmark_details`, likewise the next two.
        times: how the time of each such row varies, and where it goes.
        files: what each such row ran.
        benchmark_reference: the row that the others are held against, in words.
        budgets: one for each candidate.
        latencies: one for each model that was timed.
        steps: verified steps.
        provenance: what made the page.
    """

    title: str
    status: str
    verdict: str
    warnings: tuple[str, ...] = ()
    repair: RepairReport | None = None
    is_trial: bool = False
    inspection: Inspection | None = None
    accuracies: tuple[AccuracyRow, ...] = ()
    scores: LabelScores | None = None
    benchmark: tuple[BenchmarkRow, ...] = ()
    tensors: Table | None = None
    times: Table | None = None
    files: Table | None = None
    benchmark_reference: str = ""
    budgets: tuple[ErrorBudget, ...] = ()
    latencies: tuple[LatencySeries, ...] = ()
    steps: tuple[StepRow, ...] = ()
    provenance: Provenance | None = None

    @property
    def samples(self) -> int:
        """The number of samples that the variances rest on."""
        if self.repair is not None:
            return self.repair.judged_on
        return self.inspection.samples if self.inspection is not None else 0
