"""`vsfix optimize`: repair the statistics, remove what training left, fold; the input is never written."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.completion import METHODS, METRICS, PRECISIONS, words
from vsfix.pipeline.cli.options import (
    batch_size_option,
    complete_data,
    data_option,
    html_option,
    input_shape_option,
    json_option,
    noise_option,
    normalization_options,
    output_kind_option,
    parse_output_kinds,
    samples_option,
    seed_option,
    verbose_option,
)


@click.command(name="optimize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The repaired ONNX file.")
@data_option(required=False)
@samples_option("256, or 500 where the noise has to be inferred; all for --method exact")
@batch_size_option
@click.option(
    "--method",
    metavar="|".join(METHODS),
    shell_complete=words(METHODS),
    default="auto",
    show_default=True,
    help="match: scale and shift of each layer, so that the deployed network computes what the one with its noise "
    "computes on average. auto: match where the file is far from that. paired, exact: the paper's re-estimation of the "
    "statistics with the noise off. analytic: closed forms of the same, nothing is run. none: fold and cast only. "
    "Without --data, inputs are made from the model.",
)
@click.option(
    "--refine/--no-refine",
    default=None,
    help="Refine the match end to end, by gradient; needs torch.  [default: where its cost, known from the graph, is "
    "moderate]",
)
@output_kind_option
@noise_option
@click.option(
    "--layers",
    default="auto",
    show_default=True,
    metavar="auto|all|GLOB",
    shell_complete=words(["auto", "all"]),
    help="Which BatchNorms: those that noise reaches, all, or those whose name matches.",
)
@click.option("--fold/--no-fold", default=True, show_default=True, help="Fold BatchNorm into Conv and Gemm.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Cast weights and activations, after the fold; inputs and outputs keep their type. tf32 is float32 in the "
    "file. int8 and fp8 insert Q/DQ by ModelOpt, with --data.  [default: as the file is]",
)
@click.option(
    "--keep-metric",
    type=float,
    metavar="X",
    help="With a narrow --precision: leave the layers that cost most in float32, until this share of the metric of the "
    "float32 file is kept, as 0.99. Without labels: of the agreement with the float32 file on --data.",
)
@click.option(
    "--eval-data",
    metavar="D",
    shell_complete=complete_data,
    help="Data with an array 'labels', or one with the name of an output; it chooses among all methods, and what loses "
    "on it by more than chance is not written. Without labels it shows how far outputs agree before and after.",
)
@click.option(
    "--metric",
    metavar="M",
    shell_complete=words(METRICS),
    help=f"Of --eval-data: {', '.join(METRICS)}, or module:function.  [default: top1 where the labels are whole "
    "numbers, else mse]",
)
@click.option(
    "--metric-output",
    metavar="NAME",
    help="The output that is judged.  [default: the one that --eval-data has an array for, else the first]",
)
@click.option(
    "--max-loss",
    type=float,
    metavar="X",
    help="Write what loses up to X on --eval-data, chance or not, and nothing that loses more; in the unit of the "
    "metric, percentage points for top1 and top5.  [default: refuse what is worse by more than chance, p < 0.05]",
)
@click.option("--eval-split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@input_shape_option("One input without the batch, for synthetic inputs where the file does not say it.")
@click.option(
    "--max-memory",
    default="2G",
    show_default=True,
    help="What to hold in memory, as 512M or 2G; more activations go to the disk.",
)
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    help="Also write the repaired statistics by state_dict name (.npz), for the PyTorch model.",
)
@html_option
@click.option("--dry-run", is_flag=True, help="Write neither the model nor its companions; --json is still written.")
@normalization_options
@seed_option
@json_option
@verbose_option
def command(
    model: Path,
    output: Path | None,
    data: str | None,
    samples: int | None,
    batch_size: int,
    method: str,
    refine: bool | None,
    output_kinds: tuple[str, ...],
    noise: tuple[str, ...],
    layers: str,
    fold: bool,
    precision: str | None,
    keep_metric: float | None,
    eval_data: str | None,
    metric: str | None,
    metric_output: str | None,
    eval_split: str,
    max_loss: float | None,
    input_shape: tuple[int, ...] | None,
    max_memory: str,
    statistics: Path | None,
    html: Path | None,
    dry_run: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: tuple[int, ...] | None,
    seed: int,
    json_path: str | None,
    force: bool,
) -> None:
    """Bring MODEL to the network that was trained, remove its noise markers, fold, cast, and write OUTPUT.

    A network trained with noise is the average over that noise; deployed without it, it computes something else. The
    data is the training data or anything like it; labels are not needed, and 32 samples are enough where the file says
    where the noise was. Where it does not, the noise is inferred from the statistics, which wants some hundred. Without
    --data, inputs are made from the model itself.
    """
    import vsfix
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.output_file import input_files

    if output is None and not dry_run:
        raise click.UsageError("name the output with -o, or pass --dry-run")
    with json_output("optimize", json_path, force=force) as out:
        outputs = [output, statistics, html]
        named, written = (outputs, []) if dry_run else ([], outputs)
        out.require(written, inputs=input_files(model, data, eval_data), rewritten=named)
        try:
            result = vsfix.optimize(
                model,
                data,
                method=method,
                noise=noise,
                layers=layers,
                samples=samples,
                batch_size=batch_size,
                refine=refine,
                eval_data=eval_data,
                eval_split=eval_split,
                metric=metric,
                metric_output=metric_output,
                max_loss=max_loss,
                output_kinds=parse_output_kinds(output_kinds),
                fold=fold,
                precision=precision,
                keep_metric=keep_metric,
                input_shape=input_shape,
                max_memory=max_memory,
                mean=mean,
                std=std,
                size=size,
                seed=seed,
            )
        except vsfix.RefusedRepairError as refusal:
            if html is not None and not dry_run:
                refusal.result.to_html(html, force)
            raise
        if statistics is not None:
            result = result.for_torch()
        if output is not None and not dry_run:
            result.save(output, force, statistics=statistics, html=html)
        out.show(result, view=result.view(written=[path for path in written if path is not None]))
