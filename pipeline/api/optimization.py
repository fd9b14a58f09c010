"""What `vsfix optimize` does: read, repair, judge on labelled data where there is some, write."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import CheckFailedError, InputError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.io.external_data import external_data_files
from vsfix.graph_passes.io.model_file import export_model, read_model, written_model
from vsfix.graph_passes.io.named_file import user_path
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise_average.severity import HEALTHY
from vsfix.graph_passes.statistics.batches import first_samples, prescribed_batch_size
from vsfix.graph_passes.statistics.shift import geometric_mean
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.comparison.accuracy import AccuracyRow, accuracy_row
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples
from vsfix.pipeline.host.environment import describe_machine
from vsfix.pipeline.host.output_file import require_outputs
from vsfix.pipeline.inspection.lost_noise import is_lost
from vsfix.pipeline.inspection.preparation import PreparedModel, prepare_model
from vsfix.pipeline.repair.averaging import UNDER_NOISE
from vsfix.pipeline.repair.label_judge import TOP_1, LabelJudge, LabelScores
from vsfix.pipeline.repair.refining import LEAST_MEMORY
from vsfix.pipeline.repair.repair import needs_batch_norms, repair_model
from vsfix.pipeline.repair.repair_config import AVERAGING, RepairConfig
from vsfix.pipeline.repair.repair_report import Repair, RepairReport
from vsfix.pipeline.report.sections import Origin, Report
from vsfix.pipeline.tensorrt.library import ParserCheck, check_parser

MAX_MISMATCH = 10.0  # of a repaired BatchNorm; a repair that works leaves it near 1
MAX_UNEXPLAINED = 1000.0  # of a variance; pixels that were not divided by 255, or twice, are off by 65,000
SAMPLES = 500  # what the inference of lost noise wants; the paired method stops when its intervals are narrow
MATCHED = 256  # what a match takes where the file says where its noise was; more bring next to nothing


@dataclass(frozen=True)
class Outputs:
    """Where the results go; None for what is not wanted. `command` is the command line, for the page."""

    model: Path | None
    statistics: Path | None = None
    html: Path | None = None
    force: bool = False
    dry_run: bool = False
    command: str = ""

    def paths(self) -> tuple[Path, ...]:
        """The files that will be written."""
        return () if self.dry_run else tuple(path for path in (self.model, self.statistics, self.html) if path)


@dataclass(frozen=True)
class Optimization:
    """The outcome: the repair, the verdict in one sentence, what labels say where there are some, the files.

    And what TensorRT's parser says of the model, where one is installed that parses without a GPU.
    """

    repair: Repair
    status: str
    verdict: str
    accuracies: tuple[AccuracyRow, ...]
    written: tuple[Path, ...]
    scores: LabelScores | None = None
    parser: ParserCheck | None = None


class RefusedRepairError(CheckFailedError):
    """A repair that was made and is not written.

    Attributes:
        result: what it would have been, its status FAIL and its verdict the reason.
    """

    def __init__(self, reason: str, result: Optimization) -> None:
        super().__init__(reason)
        self.result = replace(result, status="FAIL", verdict=reason[:1].upper() + reason[1:], written=())


def optimize(
    model_path: Path,
    data: str | None,
    config: RepairConfig,
    outputs: Outputs,
    *,
    samples: int | None,
    batch_size: int,
    eval_data: str | None = None,
    eval_split: str = "test",
    max_loss: float | None = None,
) -> Optimization:
    """Repairs a model file.

    Args:
        model_path: the ONNX file; never written.
        data: the calibration set, as `--data` takes it; None where there is none.
        config: how to repair.
        outputs: where the results go.
        samples: how many calibration samples to take; None for all.
        batch_size: samples per run.
        eval_data: labelled data, as `--eval-data` takes it; a repair that loses on it is refused.
        eval_split: which part of a named labelled set.
        max_loss: the largest loss on labelled data that is written, in percentage points of top-1 or as a mean squared
            error; None refuses what is lower by more than chance.

    Raises:
        InputError: unreadable input, or an output that may not be written; nothing is written then. `max_loss` without
            labelled data, or a negative one.
        RefusedRepairError: the repair loses on labelled data or is not plausible; the page says why, where one was
            asked for, and nothing else is written.
        CheckFailedError: the fold is wrong, or the precision that was asked for can't hold the weights or gives other
            outputs; nothing is written then.
    """
    if max_loss is not None and (eval_data is None or not 0 <= max_loss < np.inf):
        raise InputError(f"--max-loss {max_loss:g}: needs --eval-data to measure a loss, and a number from 0 on")
    require_outputs(outputs.paths(), force=outputs.force, inputs=input_files(model_path, data, eval_data))
    model = read_model(model_path)
    prepared = prepare_model(model, config.noise, needs_batch_norms=needs_batch_norms(model, config))
    deployable = export_model(prepared.graph, model)
    prescribed = prescribed_batch_size(prepared.graph)
    cap = None if config.method == "exact" else MATCHED if _is_match(prepared, config) else SAMPLES
    batches = (
        []
        if data is None
        else calibration_batches(
            deployable,
            data,
            samples=samples or cap,
            batch_size=batch_size,
            seed=config.seed,
            at_most=samples is None,
            max_memory=config.max_memory,
        )
    )
    labelled = (
        None
        if eval_data is None
        else labelled_samples(deployable, eval_data, split=eval_split, seed=config.seed, max_memory=config.max_memory)
    )
    by_labels = None if labelled is None else LabelJudge(labelled, open_for_small_runs, batch_size)
    few = None if samples is not None else first_samples(batches, MATCHED, whole=prescribed is not None)
    repair = repair_model(model, batches, open_for_small_runs, config, averaged_on=few, judge=by_labels)
    if outputs.statistics is not None:
        warnings = (*repair.report.warnings, *repair.not_carried)
        repair = replace(repair, report=replace(repair.report, warnings=warnings))
    scores: LabelScores | None = None
    accuracies: tuple[AccuracyRow, ...] = ()
    if by_labels is not None:
        trained, repaired = by_labels.scores(deployable), by_labels.scores(repair.runnable)
        scores = by_labels.compare(trained, repaired, max_loss)
        accuracies = _accuracies(scores, trained, repaired, repair.report.samples)
    status, verdict = judge(repair.report, scores)
    result = Optimization(repair, status, verdict, accuracies, outputs.paths(), scores)
    try:
        if scores is not None:
            scores.require_no_loss(str(eval_data), _advice(config.method))
        require_plausible(repair.report, shown=bool(accuracies))
    except CheckFailedError as refusal:
        refused = RefusedRepairError(str(refusal), result)
        _write_page(refused.result, outputs, model_path)
        raise refused from None
    _write(result, outputs, model_path)
    # The parser's library takes some ten megabytes, which a small limit does not have.
    parser = check_parser(repair.model) if config.max_memory >= LEAST_MEMORY else None
    return replace(result, parser=parser)


def _accuracies(
    scores: LabelScores, trained: Float64Array, repaired: Float64Array, images: int
) -> tuple[AccuracyRow, ...]:
    """Top-1 of the file in its deployable form and of the repaired one; nothing where labels are no classes."""
    if scores.metric != TOP_1:
        return ()
    before, after = trained > 0, repaired > 0
    return accuracy_row("as trained", before), accuracy_row("repaired", after, images=images, trained=before)


def _advice(method: str) -> str:
    """What to do about a loss."""
    if method == "auto":
        return "is --data that of the training, preprocessed in the same way as the labelled data?"
    return "try --method auto, which leaves a file as it is where the labels speak against every repair"


def _is_match(prepared: PreparedModel, config: RepairConfig) -> bool:
    """Whether the file is matched without its noise being inferred first."""
    return config.method in AVERAGING and not is_lost(prepared)


def require_plausible(report: RepairReport, *, shown: bool = False) -> None:
    """Refuses a repair on data that can't be the training's: by what the first BatchNorms see, or by what is left.

    The worst BatchNorm behind a repair that works stores what the data shows; methods that write what they measured
    bring that about on any data, so what they measured is looked at too, but for BatchNorms whose statistics were to be
    replaced without any noise in front.

    Args:
        report: of the repair.
        shown: labelled data has shown that the repair loses no accuracy; that tells more than what BatchNorms see.

    Raises:
        CheckFailedError: names the BatchNorm.
    """
    outcomes = report.batch_norms if any(o.repaired for o in report.batch_norms) else ()
    kept = [o for o in outcomes if not o.before.noise and not o.repaired]
    for row in [o.before for o in (*outcomes[:1], *kept[:1]) if o.before.noise or not o.repaired]:
        if row.unexplained is not None and row.unexplained > MAX_UNEXPLAINED and not shown:
            raise CheckFailedError(
                f"refused: the variance that BatchNorm '{row.name}' sees on this data is off by a factor of "
                f"{row.unexplained:.0f} from what its noise explains: is it the data of the training, preprocessed the "
                "same way? no model is written; where it is, labelled data can show it (--eval-data)"
            )
    worst = max((o.after for o in report.batch_norms if o.repaired), key=lambda row: row.mismatch or 0, default=None)
    if worst is not None and worst.mismatch is not None and worst.mismatch > MAX_MISMATCH:
        raise CheckFailedError(
            f"refused: after the repair BatchNorm '{worst.name}' still stores a variance that is off by a factor of "
            f"{worst.mismatch:.0f} on this data: is it the data of the training, preprocessed the same way? "
            "no model is written"
        )


def input_files(model: Path, *data: str | None) -> list[Path]:
    """The files that are read: the model, the files that hold its weights, and each data set that is a file."""
    return [
        model,
        *external_data_files(model),
        *(user_path(name) for name in data if name is not None and name.endswith(".npz")),
    ]


def judge(report: RepairReport, scores: LabelScores | None = None) -> tuple[str, str]:
    """The status word and the verdict in one sentence."""
    status, verdict = _judge(report, scores)
    if scores is None or not scores.is_worse:
        return status, verdict
    allowed = "" if scores.max_loss is None else f", within --max-loss {scores.max_loss:g}"
    return "WARN", f"{verdict.rstrip('.')}; on the labels it is lower by more than chance{allowed}."


def _judge(report: RepairReport, scores: LabelScores | None) -> tuple[str, str]:
    """The same by R and by what labels gain."""
    changed = report.method != "none" and (
        report.severity_after is not None or any(outcome.repaired for outcome in report.batch_norms)
    )
    folded = sum(outcome.folded for outcome in report.batch_norms)
    tail = (f"; {folded} of {len(report.batch_norms)} folded" if report.batch_norms else "") + _precision(report)
    if not changed:
        if report.severity is not None and not report.severity.is_healthy:
            return "WARN", f"Damaged (R = {report.severity.ratio:.2f}) and not repaired: {report.method_reason}{tail}."
        return ("WARN" if report.warnings else "PASS"), f"Nothing repaired: {report.method_reason}{tail}."
    verdict = _what_was_done(report) + tail
    if scores is not None:
        verdict += f"; {scores.arrow()}"
    better = scores is not None and scores.is_better
    before, after = report.severity_before, report.severity_after
    if before is not None and after is not None:
        if after.ratio > before.ratio and better:
            verdict += ": farther from its noise-averaged network, and better on the labels"
        elif after.ratio > before.ratio:
            return "WARN", verdict + ": the file is farther from its noise-averaged network than before."
        elif after.ratio >= HEALTHY:
            return "WARN", verdict + ": it is nearer, and still far from its noise-averaged network."
        return ("WARN" if report.warnings else "PASS"), verdict + "."
    if better:
        return ("WARN" if report.warnings else "PASS"), verdict + ": better on the labels, by more than chance."
    return "WARN", verdict + _unproven(report, labelled=scores is not None)


def _what_was_done(report: RepairReport) -> str:
    """What changed, by which method, and R before and after."""
    before, after = report.severity_before, report.severity_after
    done = [row.before.name for row in report.batch_norms if row.repaired]
    what = f"{len(done)} of {len(report.batch_norms)} BatchNorms" if done else "the linear layers"
    verdict = f"Repaired {what} ({report.method}, {report.data})"
    if before is not None and after is not None:
        return verdict + f"; R, the distance to what was trained: {before.ratio:.2f} -> {after.ratio:.2f}"
    shifts = _shifts(report)
    return verdict if shifts is None else f"{verdict}; stored against real variance: {shifts[0]:.2f} -> {shifts[1]:.2f}"


def _shifts(report: RepairReport) -> tuple[float, float] | None:
    """The geometric mean of the repaired BatchNorms' variance ratios, before and after; None where not measured."""
    repaired = [outcome for outcome in report.batch_norms if outcome.repaired]
    if not report.judged_on or not repaired:
        return None
    before, after = (
        geometric_mean(np.array([getattr(outcome, side).mismatch or np.nan for outcome in repaired]))
        for side in ("before", "after")
    )
    return (before, after) if np.isfinite(before) and np.isfinite(after) else None


def _unproven(report: RepairReport, *, labelled: bool) -> str:
    """Why a repair whose R before and after were not compared is no PASS."""
    if report.method == UNDER_NOISE:
        return f": the noise itself calls for no repair ({report.method_reason})."
    if not report.judged_on:
        return ": nothing was run, since there was no data; check with `vsfix verify` or --eval-data."
    shifts = _shifts(report)
    if shifts is not None and shifts[1] > shifts[0]:
        return ": the stored variances are farther from the real ones than before."
    if labelled:
        return ": the statistics agree with the data, and the labels do not tell the files apart."
    return (
        ": the statistics agree with the data; whether the network computes what it was trained to is unknown; check "
        "with --eval-data."
    )


def _precision(report: RepairReport) -> str:
    """What the verdict says of the precision that was asked for."""
    cast = report.precision
    if cast is None:
        return ""
    counts = {name: "1 layer" if count == 1 else f"{count} layers" for name, count in cast.layers.items() if count}
    shares = " and ".join(f"{count} in {name}" for name, count in counts.items())
    if not cast.judge:
        return f"; {shares}, not compared"
    return f"; {shares}, " + (
        "the same bits as before" if cast.snr_db is None else f"{cast.snr_db:.1f} dB against before"
    )


def _write_page(result: Optimization, outputs: Outputs, source: Path) -> None:
    """Writes the report where one was asked for."""
    if outputs.html is None or outputs.dry_run:
        return
    from vsfix.pipeline.pages.page import (
        write_report,  # here, because most repairs want no page, and jinja2 takes its time
    )

    page = Report(
        title=f"Repair of {source.name}",
        status=result.status,
        verdict=result.verdict,
        repair=result.repair.report,
        accuracies=result.accuracies,
        scores=result.scores,
        origin=Origin(outputs.command, describe_machine()),
    )
    write_report(page, outputs.html, force=outputs.force)


def _write(result: Optimization, outputs: Outputs, source: Path) -> None:
    """Writes what was asked for; the model appears last, so that it never stands there without its companions."""
    if outputs.dry_run:
        return
    model = result.repair.model
    with (
        nullcontext()
        if outputs.model is None
        else written_model(model, outputs.model, force=outputs.force, inputs=[source])
    ):
        _write_page(result, outputs, source)
        if outputs.statistics is not None:
            arrays: dict[str, Any] = dict(result.repair.statistics)
            with atomic_path(outputs.statistics, force=outputs.force) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
