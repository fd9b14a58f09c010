"""`vsfix benchmark`: models, backends and precisions side by side on one set."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.completion import BACKENDS, METRICS, PRECISIONS, words
from vsfix.pipeline.cli.options import (
    batch_size_option,
    complete_data,
    data_option,
    html_option,
    json_option,
    normalization_options,
    samples_option,
    seed_option,
    split_option,
    verbose_option,
)


@click.command(name="benchmark")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@data_option(required=True)
@split_option
@samples_option()
@click.option(
    "--metric",
    metavar="M",
    shell_complete=words(METRICS),
    help=f"{', '.join(METRICS)}, or module:function of all outputs and all targets by name, which returns one number "
    "for each sample, the higher the better.  [default: top1 for whole-number labels, else mse]",
)
@click.option(
    "--metric-output",
    metavar="NAME",
    help="The output that is judged.  [default: that with a target of its own name, else the first]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="B",
    shell_complete=words(BACKENDS),
    help=f"{', '.join(BACKENDS)}; may be given several times. A model runs on those that take its kind of file; for "
    "tensorrt and tensorrt-rtx an engine is built of an ONNX file.  [default: the usual one of each file]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="P",
    shell_complete=words(PRECISIONS),
    help=f"{', '.join(PRECISIONS)}, for ONNX files in float32, which are cast as `vsfix optimize` does it; may be "
    "given several times.  [default: that of each file]",
)
@click.option(
    "--calibration",
    metavar="D",
    shell_complete=complete_data,
    help="Images for int8, fp8 and --repair, as --data takes them.  [default: the training part of --data]",
)
@click.option(
    "--repair",
    "repairs",
    multiple=True,
    metavar="METHOD:IMAGES",
    help="Repair the first model that is not repaired and judge it; auto, match, paired or exact; may be given "
    "several times; none for none.  [default: auto:32, exact:32, exact:1000]",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Batch size whose latency is measured; may be given several times.  [default: 1, 64]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=3.0,
    show_default=True,
    help="Time each row and batch size for so long and 300 runs at least; 0 for no latencies.",
)
@batch_size_option
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the class of each sample, or its score (.npz).",
)
@html_option
@normalization_options
@seed_option
@json_option
@verbose_option
def command(
    models: tuple[Path, ...],
    data: str,
    split: str,
    samples: int | None,
    metric: str | None,
    metric_output: str | None,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    calibration: str | None,
    repairs: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float,
    batch_size: int,
    predictions: Path | None,
    html: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: tuple[int, ...] | None,
    seed: int,
    json_path: str | None,
    force: bool,
) -> None:
    """Compare MODELs on the same data: accuracy, agreement, latency; the first one is the reference.

    With labels (`labels` of an .npz file: class numbers, or the targets of the judged output) a metric judges each row;
    without, rows are held against the reference, and the accuracy stays unknown.

    Each may be a vsfix checkpoint, an ONNX file or an engine. Every model runs on each backend in each precision. What
    can't run here is shown as SKIP with the reason, and the exit code is 3; it is 1 where a row failed or a repair made
    the metric worse.
    """
    import vsfix
    from vsfix.graph_passes.errors import CheckFailedError, MissingComponentError
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.output_file import input_files

    with json_output("benchmark", json_path, force=force) as out:
        inputs = [path for model in models for path in input_files(model, data, calibration)]
        out.require([predictions, html], inputs=inputs)
        found = vsfix.benchmark(
            models,
            data,
            backends=backends,
            precisions=precisions,
            split=split,
            samples=samples,
            calibration=calibration,
            repairs=repairs or None,
            batches=batches or (1, 64),
            seconds=seconds,
            batch_size=batch_size,
            mean=mean,
            std=std,
            size=size,
            seed=seed,
            metric=metric,
            metric_output=metric_output,
        )
        try:
            out.show(found)
        finally:  # whoever reads what is printed may have gone
            if predictions is not None:
                found.save_predictions(predictions, force)
            if html is not None:
                found.to_html(html, force)
        if found.status == "FAIL":
            raise CheckFailedError(found.failure)
        if found.missing:
            raise MissingComponentError("; ".join(found.missing))
