"""What `vsfix optimize` does: read, repair, judge on labelled data where there is some, write."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vsfix.graph_passes.atomic_file import atomic_path
from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.external_data import external_data_files
from vsfix.graph_passes.model_file import export_model, read_model, written_model
from vsfix.graph_passes.shift import geometric_mean
from vsfix.trainers.user_path import user_path

from .accuracy import AccuracyRow, accuracy_row, right_answers
from .backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from .calibration import Samples, calibration_batches, labelled_samples
from .environment import describe_machine
from .output_file import require_outputs
from .preparation import prepare_model
from .repair import needs_batch_norms, repair_model
from .repair_config import RepairConfig
from .repair_report import Repair, RepairReport
from .report.sections import Origin, Report

MAX_MISMATCH = 10.0  # of a repaired BatchNorm; a repair that works leaves it near 1
MAX_UNEXPLAINED = 1000.0  # of a variance; pixels that were not divided by 255, or twice, are off by 65,000
SAMPLES = 500  # what the inference of lost noise wants; the paired method stops when its intervals are narrow


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
    """The outcome: the repair, the verdict in one sentence, the accuracies where labels were given, the files."""

    repair: Repair
    status: str
    verdict: str
    accuracies: tuple[AccuracyRow, ...]
    written: tuple[Path, ...]


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
) -> Optimization:
    """Repairs a model file.

    Args:
        model_path: the ONNX file; never written.
        data: the calibration set, as `--data` takes it; None where there is none.
        config: how to repair.
        outputs: where the results go.
        samples: how many calibration samples to take; None for all.
        batch_size: samples per run.
        eval_data: labelled data, as `--eval-data` takes it; a repair that loses accuracy on it is refused.
        eval_split: which part of a named labelled set.

    Raises:
        InputError: unreadable input, or an output that may not be written; nothing is written then.
        CheckFailedError: the repair loses accuracy or is not plausible; the page says why, where one was asked for, and
            nothing else is written. The fold is wrong, or the precision that was asked for can't hold the weights or
            gives other outputs; nothing is written then.
    """
    require_outputs(outputs.paths(), force=outputs.force, inputs=input_files(model_path, data, eval_data))
    model = read_model(model_path)
    prepared = prepare_model(model, config.noise, needs_batch_norms=needs_batch_norms(model, config))
    deployable = export_model(prepared.graph, model)
    cap = SAMPLES if config.method not in ("exact", "stream") else None
    batches = (
        []
        if data is None
        else calibration_batches(
            deployable, data, samples=samples or cap, batch_size=batch_size, seed=config.seed, at_most=samples is None
        )
    )
    labelled = (
        None if eval_data is None else labelled_samples(deployable, eval_data, split=eval_split, seed=config.seed)
    )
    repair = repair_model(model, batches, open_for_small_runs, config)
    accuracies = () if labelled is None else _accuracies(deployable, repair, labelled, batch_size)
    status, verdict = judge(repair.report, accuracies)
    result = Optimization(repair, status, verdict, accuracies, outputs.paths())
    try:
        _require_no_loss(accuracies, eval_data)
        require_plausible(repair.report, shown=bool(accuracies))
    except CheckFailedError as refusal:
        sentence = str(refusal)
        _write_page(replace(result, status="FAIL", verdict=sentence[:1].upper() + sentence[1:]), outputs, model_path)
        raise
    _write(result, outputs, model_path)
    return result


def _accuracies(
    original: onnx.ModelProto, repair: Repair, labelled: Samples, batch_size: int
) -> tuple[AccuracyRow, ...]:
    """Top-1 of the original in its deployable form, and of the repaired model."""
    with OnnxRuntimeRunner(original) as before, OnnxRuntimeRunner(repair.runnable) as after:
        trained, repaired = (right_answers(runner, labelled, batch_size=batch_size) for runner in (before, after))
    return (
        accuracy_row("as trained", trained),
        accuracy_row("repaired", repaired, images=repair.report.samples, trained=trained),
    )


def _require_no_loss(accuracies: tuple[AccuracyRow, ...], eval_data: str | None) -> None:
    """Refuses a repair that is less often right on labelled data than the model as it was."""
    if accuracies and accuracies[1].accuracy < accuracies[0].accuracy:
        raise CheckFailedError(
            f"refused: on {eval_data} the repaired model has {100 * accuracies[1].accuracy:.2f} %, the original "
            f"{100 * accuracies[0].accuracy:.2f} %; no model is written; try more samples or another --method"
        )


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


def judge(report: RepairReport, accuracies: tuple[AccuracyRow, ...] = ()) -> tuple[str, str]:
    """The status word and the verdict in one sentence."""
    repaired = [outcome for outcome in report.batch_norms if outcome.repaired]
    folded = sum(outcome.folded for outcome in report.batch_norms)
    tail = (f"; {folded} of {len(report.batch_norms)} folded" if report.batch_norms else "") + _precision(report)
    if not repaired:
        why = report.method_reason if report.method == "none" else "the evidence supports no change"
        return ("WARN" if report.warnings else "PASS"), f"Nothing repaired: {why}{tail}."
    before, after = (
        geometric_mean(np.array([getattr(outcome, side).mismatch or np.nan for outcome in repaired]))
        for side in ("before", "after")
    )
    verdict = f"Repaired {len(repaired)} of {len(report.batch_norms)} BatchNorms ({report.method}, {report.data})"
    if report.judged_on and np.isfinite(before):
        verdict += f"; stored against real variance: {before:.2f} -> {after:.2f}"
    verdict += tail
    if accuracies:
        first, last = accuracies[0], accuracies[-1]
        verdict += f"; top-1 {100 * first.accuracy:.1f} -> {100 * last.accuracy:.1f} %"
    if not report.judged_on:
        return "WARN", verdict + ": nothing was run, since there was no data; check with `vsfix verify` or --eval-data."
    if after > before:
        return "WARN", verdict + ": the stored variances are farther from the real ones than before."
    return ("WARN" if report.warnings else "PASS"), verdict + "."


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
    from .report.page import write_report  # here, because most repairs want no page, and jinja2 takes its time

    page = Report(
        title=f"Repair of {source.name}",
        status=result.status,
        verdict=result.verdict,
        repair=result.repair.report,
        accuracies=result.accuracies,
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
