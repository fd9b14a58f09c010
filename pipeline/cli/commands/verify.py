"""`vsfix verify`: two models, or two runtimes, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.completion import BACKENDS, words
from vsfix.pipeline.cli.options import (
    batch_size_option,
    data_option,
    json_option,
    normalization_options,
    samples_option,
    seed_option,
    split_option,
    verbose_option,
)


@click.command(name="verify")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--against",
    required=True,
    type=click.Path(path_type=Path),
    metavar="REFERENCE",
    help="What is right: a vsfix checkpoint, an ONNX file or an engine; or package.module:factory, a function without "
    "arguments that returns a module of PyTorch, whose code is run.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The weights of the module that the factory makes, as for `vsfix export`.",
)
@click.option("--weights-key", metavar="KEY", help="Where they are in FILE, where it holds several.")
@click.option(
    "--via",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file between REFERENCE and MODEL, in the order in which one came from the other; may be given several "
    "times. Shows what each step costs.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="B",
    shell_complete=words(BACKENDS),
    help=f"Where MODEL runs: {', '.join(BACKENDS)}; may be given several times.  [default: torch for a checkpoint, "
    "onnxruntime for an ONNX file, reference for one in bf16, its own runtime for an engine]",
)
@click.option(
    "--reference-backend",
    metavar="B",
    shell_complete=words(BACKENDS),
    help="Where REFERENCE runs.  [default: as for --backend]",
)
@data_option(required=False)
@split_option
@samples_option()
@batch_size_option
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Running statistics for the reference in PyTorch, as `vsfix optimize --statistics` writes them.",
)
@click.option(
    "--min-snr",
    type=float,
    metavar="DB",
    help="Wanted of every output.  [default: by the precision of the files: 80 in fp32, 50 in tf32 and fp16, 25 in "
    "bf16, 20 in int8 and fp8]",
)
@click.option(
    "--min-agreement",
    type=float,
    metavar="SHARE",
    help="Wanted share of samples with the same top-1 decision.  [default: 0.999, 0.995, 0.98, 0.95]",
)
@click.option(
    "--max-accuracy-loss",
    type=float,
    metavar="POINTS",
    help="By how many percentage points top-1 may be below the reference's, with labels.  [default: 0.1, 0.1, 0.5, 1]",
)
@click.option(
    "--layers/--no-layers", default=True, show_default=True, help="On failure, look for the layer that differs."
)
@click.option(
    "--trust",
    is_flag=True,
    help="Load MODEL where it is an engine without the report of `vsfix build` beside it. An engine is code that runs "
    "here; its inputs and precision are taken to be those of the file that it is compared with.",
)
@normalization_options
@seed_option
@json_option
@verbose_option
def command(
    model: Path,
    against: Path,
    weights: Path | None,
    weights_key: str | None,
    via: tuple[Path, ...],
    backends: tuple[str, ...],
    reference_backend: str | None,
    data: str | None,
    split: str,
    samples: int | None,
    batch_size: int,
    statistics: Path | None,
    min_snr: float | None,
    min_agreement: float | None,
    max_accuracy_loss: float | None,
    layers: bool,
    trust: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: tuple[int, ...] | None,
    seed: int,
    json_path: str | None,
    force: bool,
) -> None:
    """Compare MODEL with a reference; the exit code is 1 where a number is past its tolerance.

    Both may be a vsfix checkpoint, an ONNX file or an engine, each on any backend that runs its kind of file; the
    reference a module of your own too. Where a number is past its tolerance, the layers are searched for the first that
    differs.

    Without --data random numbers are fed: they compare the numerics and say nothing about accuracy. With labelled
    data the accuracy of both is shown, with 95 % intervals.
    """
    import vsfix
    from vsfix.graph_passes.errors import CheckFailedError
    from vsfix.pipeline.backends.model_kind import names_factory
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.comparison.tolerance import GivenTolerance

    if (weights is not None or weights_key is not None) and not names_factory(str(against)):
        raise click.UsageError("--weights and --weights-key go with --against package.module:factory")
    with json_output("verify", json_path, force=force) as out:
        out.require(inputs=[path for path in (model, against, weights, statistics, *via) if path])
        found = vsfix.verify(
            model,
            str(against) if names_factory(str(against)) else against,
            data,
            weights=weights,
            weights_key=weights_key,
            via=via,
            backend=backends,
            reference_backend=reference_backend,
            split=split,
            samples=samples,
            batch_size=batch_size,
            statistics=statistics,
            tolerance=GivenTolerance(min_snr, min_agreement, max_accuracy_loss),
            layers=layers,
            trust=trust,
            mean=mean,
            std=std,
            size=size,
            seed=seed,
        )
        out.show(found)
        if found.status == "FAIL":
            raise CheckFailedError(found.verdict)
