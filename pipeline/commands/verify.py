"""`vsfix verify`: two models, or two runtimes, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from .options import batch_size_option, data_option, json_option, samples_option, seed_option


@click.command(name="verify")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--against",
    required=True,
    type=click.Path(path_type=Path),
    metavar="REFERENCE",
    help="What is right: a vsfix checkpoint (runs in torch) or an ONNX file (runs in ONNX Runtime on the CPU).",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    metavar="B",
    help="Where MODEL runs: torch, onnxruntime, onnxruntime-cuda, reference; may be given several times.",
)
@data_option(required=False)
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@samples_option()
@batch_size_option
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Running statistics for the torch reference, as `vsfix optimize --statistics` writes them.",
)
@click.option("--min-snr", type=float, default=80.0, show_default=True, metavar="DB", help="Wanted of every output.")
@click.option(
    "--min-agreement",
    type=float,
    default=0.999,
    show_default=True,
    metavar="SHARE",
    help="Wanted share of samples with the same top-1 decision.",
)
@seed_option
@json_option
def command(
    model: Path,
    against: Path,
    backends: tuple[str, ...],
    data: str | None,
    split: str,
    samples: int | None,
    batch_size: int,
    statistics: Path | None,
    min_snr: float,
    min_agreement: float,
    seed: int,
    json_path: str | None,
    force: bool,
) -> None:
    """Compare MODEL with a reference; the exit code is 1 where a number is past its tolerance.

    Without --data random numbers are fed: they compare the numerics and say nothing about accuracy. With labelled
    data the accuracy of both is shown, with 95 % intervals.
    """
    from dataclasses import asdict

    from vsfix.graph_passes.errors import CheckFailedError
    from vsfix.pipeline.console import print_table, require_json_target, write_json
    from vsfix.pipeline.verification import Tolerance
    from vsfix.pipeline.verification_files import VerificationConfig, verify_files
    from vsfix.pipeline.verification_table import accuracy_lines, verification_table

    require_json_target(json_path, force=force, inputs=[path for path in (model, against, statistics) if path])
    config = VerificationConfig(
        backends=backends,
        data=data,
        split=split,
        samples=samples,
        batch_size=batch_size,
        statistics=statistics,
        seed=seed,
        tolerance=Tolerance(min_snr, min_agreement),
    )
    verification = verify_files(model, against, config)
    if json_path != "-":
        print_table(verification_table(verification))
        for line in accuracy_lines(verification):
            click.echo(line)
        if verification.random:
            click.echo("SKIP decisions: the inputs are random numbers; give --data to compare decisions and accuracy")
        click.echo(f"{verification.status} {model} against {against}")
    if json_path:
        write_json(asdict(verification) | {"status": verification.status}, json_path, force=force)
    failed = [f"{result.candidate}: {reason}" for result in verification.results for reason in result.reasons]
    if failed:
        raise CheckFailedError("; ".join(failed))
