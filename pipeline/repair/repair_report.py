"""The result of a repair as plain data: the terminal's table, the JSON and the page are three views of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise.analysis import TracedPath
from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.graph_passes.statistics.estimate import Interval
from vsfix.pipeline.casting.casting import PrecisionReport
from vsfix.pipeline.comparison.agreement import Agreement
from vsfix.pipeline.inspection.batch_norm_row import BatchNormRow
from vsfix.pipeline.inspection.noise_study import LayerRow

from .candidates import CandidateRow


@dataclass(frozen=True)
class BatchNormOutcome:
    """The outcome of one BatchNorm.

    Attributes:
        before: its row before the repair; the noise that reaches it is there.
        after: its row after it.
        method: what estimated it; empty where nothing did.
        shift: variance at inference over variance in training as the method estimates it; None where nothing did.
        interval: of that shift, 95 %; None where nothing is uncertain or nothing was estimated.
        repaired: whether its statistics changed.
        action: what was done, or `kept:` and the reason.
        folded: whether it was folded away.
        fold_reason: into what, or why not.
    """

    before: BatchNormRow
    after: BatchNormRow
    method: str
    shift: float | None
    interval: Interval | None
    repaired: bool
    action: str
    folded: bool
    fold_reason: str


@dataclass(frozen=True)
class RepairReport:
    """The whole repair.

    Attributes:
        method: what was done in the end: one of the methods, or `none`.
        method_reason: why.
        data: what the estimates rest on, in words; it says so where no data of the user was used.
        samples: how many of them the estimates took.
        judged_on: the number of samples on which the shift before and after was measured.
        batch_norms: one outcome for each, in the order of the graph.
        prepared: what was changed to make the file deployable, before anything was estimated.
        removed: the noise layers and identities that were removed.
        warnings: what a person should know before trusting the numbers.
        compared_on: the number of samples on which the final graph was compared with the repaired graph before removal
            and folding; random ones where there was no data, 0 where none could be made.
        fold_snr_db: signal to noise of that comparison; None where they are equal to the bit, or were not compared.
        precision: what the cast to another precision did; None where none was asked for.
        severity: R of the file as given, on everything that it was run on; None where no noise is known or nothing ran.
        severity_before: the same on the samples that judge the repair; None where none was tried.
        severity_after: R of what is written, on the same samples.
        judges: how many those are.
        candidates: what was tried, the file as given first; one row for a method of re-estimation.
        outputs: how each output is read, one line each.
        layers: of every layer whose scale and shift are free, how far it is from the averaged network.
        cross_fitted: see `Averaging`.
        agreements: of each output, on data that was to judge and has no labels.
        route: the path of the noise to the BatchNorm that it shifted most before the repair; None where there is none.
    """

    method: str
    method_reason: str
    data: str
    samples: int
    judged_on: int
    batch_norms: tuple[BatchNormOutcome, ...]
    prepared: tuple[str, ...]
    removed: tuple[str, ...]
    warnings: tuple[str, ...]
    compared_on: int
    fold_snr_db: float | None
    precision: PrecisionReport | None = None
    route: TracedPath | None = None
    severity: Severity | None = None
    severity_before: Severity | None = None
    severity_after: Severity | None = None
    judges: int = 0
    candidates: tuple[CandidateRow, ...] = ()
    outputs: tuple[str, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    cross_fitted: float | None = None
    agreements: tuple[Agreement, ...] = ()


@dataclass(frozen=True)
class Repair:
    """The result of `repair_model`.

    Attributes:
        model: the deployable model.
        unfolded: the repaired model before its markers were removed and anything was folded.
        runnable: what stands for the model where it is run on the CPU: itself, or, in a narrow precision, a float32
            model in which every weight and activation is rounded.
        report: what was done.
        statistics: everything that changed by state_dict name: `<module>.weight`, `.bias`, and of a BatchNorm
            `.running_mean` and `.running_var`.
        not_carried: what changed and has no such name, one sentence each, for whoever asks for the statistics.
    """

    model: onnx.ModelProto = field(repr=False)
    unfolded: onnx.ModelProto = field(repr=False)
    runnable: onnx.ModelProto = field(repr=False)
    report: RepairReport
    statistics: Mapping[str, Array] = field(repr=False)
    not_carried: tuple[str, ...] = ()
