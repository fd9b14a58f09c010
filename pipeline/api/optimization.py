"""`vsfix.optimize` and its result: read, repair, judge on labelled data where there is some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from vsfix.graph_passes.errors import CheckFailedError, InputError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.io.model_file import export_model, written_model
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import small_runs_within
from vsfix.pipeline.comparison.accuracy import AccuracyRow, accuracy_row
from vsfix.pipeline.comparison.metric import Function, Metric
from vsfix.pipeline.data.calibration import calibration_batches, evaluation_samples
from vsfix.pipeline.data.data_forms import Data, data_text
from vsfix.pipeline.host.console import View
from vsfix.pipeline.host.environment import command_line, describe_machine
from vsfix.pipeline.repair.label_judge import LabelJudge, LabelScores, batches_of_some, has_targets
from vsfix.pipeline.repair.plan import MATCHED, SAMPLES, averaged_part, is_matched
from vsfix.pipeline.repair.refining import LEAST_MEMORY
from vsfix.pipeline.repair.repair import prepare, repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.repair.repair_report import Repair, RepairReport
from vsfix.pipeline.repair.verdict import judge, require_plausible
from vsfix.pipeline.report.sections import Provenance, Report
from vsfix.pipeline.tensorrt.library import ParserCheck, check_parser
from vsfix.pipeline.terminal import tables

from .arguments import (
    Model,
    Numbers,
    files_read,
    given_data,
    load_model,
    model_name,
    model_path,
    normalization_of,
    notes_of,
    parse_size,
    real_number,
    require_output_kinds,
    require_split,
    require_texts,
    run_numbers,
    texts,
    whole_numbers,
)
from .results import Result


@dataclass(frozen=True)
class Optimization(Result):
    """A repaired model, and everything that is known of the repair.

    Attributes:
        repair: the models and what changed; see `vsfix.pipeline.repair.repair_report.Repair`.
        status: PASS, WARN, or FAIL where the repair was refused.
        verdict: one sentence with the numbers.
        accuracies: top-1 as trained and repaired, where the labels are classes.
        scores: what labelled data says; None without it.
        other_scores: the same of each other output that has labels of its own name.
        parser: what TensorRT's parser says of the model; None where none is installed that parses without a GPU.
        source: the file that was read; None for a model in memory.
    """

    command: ClassVar[str] = "optimize"

    repair: Repair = field(repr=False)
    status: str
    verdict: str
    accuracies: tuple[AccuracyRow, ...] = field(default=(), repr=False)
    scores: LabelScores | None = None
    other_scores: tuple[LabelScores, ...] = ()
    parser: ParserCheck | None = None
    source: Path | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The deployable model."""
        return self.repair.model

    @property
    def report(self) -> RepairReport:
        """The report of the repair, BatchNorm by BatchNorm, with R before and after."""
        return self.repair.report

    def state_dict(self) -> dict[str, Array]:
        """The changes by the names of the PyTorch model, as arrays of numpy.

        A module takes them as tensors: `module.load_state_dict({name: torch.from_numpy(array) for name, array in
        result.state_dict().items()}, strict=False)`.

        The names are `<module>.weight`, `.bias`, and of a BatchNorm `.running_mean` and `.running_var`. What has no
        such name stands in `repair.not_carried`.
        """
        return {name: np.array(values) for name, values in self.repair.statistics.items()}

    def for_torch(self) -> Optimization:
        """This result, with a warning for each change that `state_dict` can't carry."""
        warnings = (*self.report.warnings, *self.repair.not_carried)
        repair = replace(self.repair, report=replace(self.report, warnings=warnings))
        status, verdict = judge(repair.report, self.scores)
        return replace(self, repair=repair, status=status, verdict=verdict)

    def save(
        self,
        path: str | Path,
        force: bool = False,
        *,
        statistics: str | Path | None = None,
        html: str | Path | None = None,
    ) -> None:
        """Writes the model, and what is to go with it; the model appears last, or nothing does.

        Args:
            path: the ONNX file; past 2 GiB the weights go into `<path>.data`.
            force: existing files may be replaced, and a repair that was refused is written.
            statistics: an `.npz` file for `state_dict`; None for none.
            html: the page; None for none.

        Raises:
            CheckFailedError: the repair was refused, and `force` is not given.
            OutputExistsError: a file exists and `force` is not given.
            InputError: a file can't be written, or was read.
            ModelError: the checker refuses the model.
        """
        if self.status == "FAIL" and not force:
            raise CheckFailedError(self.verdict)
        self.require_outputs(path, statistics, html, force=force)
        with written_model(self.model, Path(path), force=force, inputs=self.files_read):
            if html is not None:
                self.to_html(html, force)
            if statistics is not None:
                arrays: dict[str, Any] = self.state_dict()
                with atomic_path(Path(statistics), force=force) as temporary, temporary.open("wb") as file:
                    np.savez(file, **arrays)

    def to_html(self, path: str | Path, force: bool = False) -> None:
        """Writes the page.

        Args:
            path: one HTML file, which needs nothing else.
            force: an existing file may be replaced.

        Raises:
            OutputExistsError, InputError: it can't be written, or was read.
        """
        from vsfix.pipeline.pages.page import write_report  # here: most repairs want no page, and jinja2 takes its time

        self.require_outputs(path, force=force)
        page = Report(
            title=f"Repair of {model_name(self.model) if self.source is None else self.source.name}",
            status=self.status,
            verdict=self.verdict,
            repair=self.report,
            accuracies=self.accuracies,
            scores=self.scores,
            provenance=Provenance(command_line(), describe_machine()),
        )
        write_report(page, Path(path), force=force)

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return self.status, self.verdict, self.report.warnings

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        return asdict(self.report) | {
            "accuracies": [asdict(row) for row in self.accuracies],
            "scores": None if self.scores is None else asdict(self.scores),
            "other_scores": [asdict(found) for found in self.other_scores],
            "tensorrt_parser": None if self.parser is None else asdict(self.parser),
        }

    def view(self, written: Sequence[Path] = ()) -> View:
        """The lines and tables of the terminal.

        Args:
            written: the files that the result stands in.
        """
        yield from tables.repair_view(self.report)
        if self.accuracies:
            yield tables.accuracy_table(self.accuracies)
        if self.scores is not None:
            yield from map(tables.score_table, (self.scores, *self.other_scores))
        yield f"{self.status} {self.verdict}"
        yield from (f"wrote {path}" for path in written)
        if self.parser is not None:
            yield self.parser.line


class RefusedRepairError(CheckFailedError):
    """A repair that was made and is not to be deployed.

    Attributes:
        result: what it would have been, its status FAIL and its verdict the reason.
    """

    def __init__(self, reason: str, result: Optimization) -> None:
        super().__init__(reason)
        self.result = replace(result, status="FAIL", verdict=reason[:1].upper() + reason[1:])


@stage("optimize")
def optimize(
    model: Model,
    data: Data | None = None,
    *,
    method: str = "auto",
    noise: str | Sequence[str] = (),
    layers: str = "auto",
    samples: int | None = None,
    batch_size: int = 256,
    refine: bool | None = None,
    eval_data: Data | None = None,
    eval_split: str = "test",
    metric: str | Function | None = None,
    metric_output: str | None = None,
    max_loss: float | None = None,
    output_kinds: Mapping[str, str] | None = None,
    fold: bool = True,
    precision: str | None = None,
    keep_metric: float | None = None,
    input_shape: Sequence[int] | None = None,
    max_memory: str | int = "2G",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Optimization:
    """Brings a model to the network that was trained, removes its noise markers, folds, casts. Nothing is written.

    Args:
        model: the path of an ONNX file, or an `onnx.ModelProto`; not changed.
        data: samples like those of the training, without labels, as `--data` takes them or in any form that
            `vsfix.pipeline.data.data_forms` lists, batch axis first; None makes inputs from the model.
        method: `auto`, `match`, `paired`, `exact`, `analytic` or `none`.
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`, as `bn2=dropout:0.5`.
        layers: `auto` (the BatchNorms that noise reaches), `all`, or a glob over their names.
        samples: how many to take; None for 256, for 500 where the noise has to be inferred, for all of `exact`.
        batch_size: samples per run.
        refine: refine the match end to end by gradient, in torch; None where its cost is moderate.
        eval_data: labelled data in the same forms; it chooses among the methods, and what loses on it is refused. What
            an output should be is `labels`, or an array with the name of that output. Without either it shows how far
            the outputs agree before and after.
        eval_split: `train` or `test`, of a named data set.
        metric: of the labels: one of `vsfix.pipeline.comparison.metric.METRICS`, `module:function`, or a function that
            takes all outputs and all targets as dicts of arrays and gives one number a sample, the higher the better;
            None for top1 where labels are whole numbers, else mse.
        metric_output: the output that is judged; None for the one that has a target of its own name, else the first.
        max_loss: the largest loss on `eval_data` that is accepted, in the unit of the metric, percentage points of top1
            and top5; None refuses what is worse by more than chance.
        output_kinds: what outputs mean, by name: `classes`, `probabilities`, `directions` or `values`; the others are
            recognised.
        fold: fold BatchNorm into the layers around it.
        precision: `fp32`, `tf32`, `fp16`, `bf16`, `int8` or `fp8`; None leaves it as it is.
        keep_metric: the share of the metric of the float32 model that a narrow precision is to keep, in (0, 1], as
            0.99; the layers that cost most are left in float32 for it, by measurement. Of `metric` on `eval_data`;
            without labels of the agreement with the float32 model on `data`.
        input_shape: one input without the batch axis, where the file does not say it and there is no data.
        max_memory: what the process may hold, as `2G` or in bytes; more activations go to the disk.
        mean: of the images of the training, between 0 and 1: one number, or one for each channel; for named data sets
            and images of bytes where the model does not say how they are normalised: (x / 255 - mean) / std.
        std: the deviation, likewise.
        size: (height, width) of the images of a folder, where the model takes any.
        seed: of everything that is drawn at random.

    Returns:
        The repaired model; `save` writes it.

    Raises:
        InputError: a model, data or an option that can't be used; its subclasses say which.
        RefusedRepairError: the repair loses on labelled data or is not plausible; its `result` holds what was found.
        CheckFailedError: the fold is wrong, or the precision can't hold the weights or gives other outputs.
        MissingComponentError: a library that this needs is not installed.
    """
    if max_loss is not None and not (isinstance(max_loss, Real) and 0 <= max_loss < np.inf and eval_data is not None):
        raise InputError(f"--max-loss {max_loss!r}: needs --eval-data to measure a loss, and a number from 0 on")
    if eval_data is None and not (metric is None and metric_output is None):
        option = "--metric" if metric is not None else "--metric-output"
        raise InputError(f"{option}: needs --eval-data, whose labels it is measured on")
    if keep_metric is not None and data is None:
        raise InputError("--keep-metric: needs --data, on which the layers are measured")
    samples, batch_size, seed = run_numbers(samples, batch_size, seed)
    require_texts(method=method, layers=layers, **({} if precision is None else {"precision": precision}))
    require_split("eval_split", eval_split)
    require_output_kinds(output_kinds)
    config = RepairConfig(
        method=method,
        refine=refine,
        output_kinds=output_kinds or {},
        layers=layers,
        noise=texts("noise", noise),
        fold=fold,
        seed=seed,
        max_memory=parse_size(max_memory, "--max-memory"),
        input_shape=None if input_shape is None else whole_numbers("input_shape", input_shape),
        precision=precision,
        keep_metric=None if keep_metric is None else real_number("keep_metric", keep_metric),
    )
    said = normalization_of(mean, std, size)
    calibration, labelled = given_data(data, said), given_data(eval_data, said)
    source = load_model(model)
    prepared = prepare(source, config)
    open_model = small_runs_within(config.max_memory)
    deployable = export_model(prepared.graph, source)
    cap = None if method == "exact" else MATCHED if is_matched(prepared, method) else SAMPLES

    def draw(count: int | None) -> Sequence[Batch]:
        """The batches that are drawn of the data."""
        if calibration is None:
            return []
        return calibration_batches(
            deployable,
            calibration,
            samples=samples or count,
            batch_size=batch_size,
            seed=seed,
            at_most=samples is None,
            max_memory=config.max_memory,
        )

    batches = draw(cap)
    by_labels = None
    unlabelled: Sequence[Batch] = []
    if labelled is not None:
        given = evaluation_samples(deployable, labelled, split=eval_split, seed=seed, max_memory=config.max_memory)
        if has_targets(deployable, given) or not (metric is None and metric_output is None and max_loss is None):
            by_labels = LabelJudge.of(
                deployable,
                given,
                open_model,
                batch_size,
                metric=metric,
                output=metric_output,
                output_kinds=output_kinds,
                max_loss=max_loss,
                keep=keep_metric,
            )
        else:
            unlabelled = batches_of_some(given, deployable, batch_size, seed)
    few = None if samples is not None else averaged_part(batches, prepared, method, lambda: draw(MATCHED))
    repair = repair_model(
        prepared, batches, open_model, config, averaged_on=few, judge=by_labels, unlabelled=unlabelled
    )
    scores: LabelScores | None = None
    others: tuple[LabelScores, ...] = ()
    accuracies: tuple[AccuracyRow, ...] = ()
    if by_labels is not None:
        trained, repaired = by_labels.all_scores(deployable), by_labels.all_scores(repair.runnable)
        scores = by_labels.compare(trained[0], repaired[0])
        others = by_labels.compare_others(trained, repaired)
        accuracies = _accuracies(by_labels.metric, trained[0], repaired[0], repair.report.samples)
    result = Optimization(
        repair,
        *judge(repair.report, scores),
        accuracies,
        scores,
        others,
        source=model_path(model),
        files_read=files_read([model], [data, eval_data]),
        data_notes=notes_of(calibration, labelled),
    )
    try:
        if scores is not None and by_labels is not None:
            for judged in (scores, *others):
                judged.require_no_loss(data_text(eval_data) or by_labels.samples.name, _advice(method))
        require_plausible(repair.report, shown=scores is not None and scores.is_told)
    except CheckFailedError as refusal:
        raise RefusedRepairError(str(refusal), result) from None
    # The parser's library takes some ten megabytes, which a small limit does not have.
    parser = check_parser(repair.model) if config.max_memory >= LEAST_MEMORY else None
    return replace(result, parser=parser)


def _accuracies(metric: Metric, trained: Float64Array, repaired: Float64Array, images: int) -> tuple[AccuracyRow, ...]:
    """Top-1 of the file in its deployable form and of the repaired one; nothing where a sample is no one decision."""
    if metric.key != "top1" or not np.isin(np.concatenate([trained, repaired]), (0, 1)).all():
        return ()
    before, after = trained > 0, repaired > 0
    return accuracy_row("as trained", before), accuracy_row("repaired", after, images=images, trained=before)


def _advice(method: str) -> str:
    """The remedy for a loss."""
    if method == "auto":
        return "is --data that of the training, preprocessed in the same way as the labelled data?"
    return "try --method auto, which leaves a file as it is where the labels speak against every repair"
