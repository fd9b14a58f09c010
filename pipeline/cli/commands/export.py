"""`vsfix export`: a trained network as an ONNX file that keeps the evidence of its noise."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.options import input_shape_option
from vsfix.pipeline.host.terminal_text import print_line


@click.command(name="export")
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The ONNX file.")
@click.option("--opset", type=int, default=18, show_default=True, help="15 to 25.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A state_dict for the module that the factory makes.",
)
@input_shape_option("One input of the module, without the batch.")
@click.option("--force", is_flag=True, help="Replace an output that exists.")
def command(
    source: str,
    output: Path,
    opset: int,
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    force: bool,
) -> None:
    """Write SOURCE as an ONNX file, every BatchNorm kept and every noise layer marked, checked against torch.

    SOURCE is a vsfix checkpoint, the folder of a training run, or package.module:factory with --input-shape (and
    --weights): a function without arguments that returns the module. That form imports the package and runs its
    code, and looks for it in the current folder too; no other command runs code of yours.
    """
    from vsfix.pipeline.backends.opening import checkpoint_file
    from vsfix.pipeline.host.output_file import require_output

    is_factory = ":" in source and not Path(source).exists()
    if is_factory and input_shape is None:
        raise click.UsageError("a factory needs --input-shape, as 3x32x32")
    if not is_factory and (input_shape is not None or weights is not None):
        raise click.UsageError("--input-shape and --weights go with package.module:factory; a checkpoint has its own")
    inputs = [weights] if weights is not None else [] if is_factory else [checkpoint_file(Path(source))]
    # Before torch is loaded, which takes seconds.
    require_output(output, force=force, inputs=inputs)

    from vsfix.trainers.export.exporting import export_checkpoint, export_factory
    from vsfix.trainers.training.checkpoint import load_checkpoint

    if input_shape is not None:
        result = export_factory(source, output, input_shape=input_shape, weights=weights, opset=opset, force=force)
    else:
        result = export_checkpoint(load_checkpoint(checkpoint_file(Path(source))), output, opset=opset, force=force)
    if is_factory and weights is None:
        print_line(f"WARN no --weights: the file holds those that {source} gave the module")
    print_line(f"BatchNorms kept: {len(result.batch_norms)}")
    print_line(f"noise layers marked: {len(result.markers)}")
    for name, noise in result.markers:
        print_line(f"  {name} {noise}")
    if result.untracked:
        print_line(
            f"WARN {len(result.untracked)} BatchNorms keep no statistics ('{result.untracked[0]}' the first, "
            "track_running_stats=False): the file's answer for a sample depends on the others of its batch"
        )
    for description in result.unmarked:
        print_line(f"WARN not marked: {description}")
    snr = "exact" if result.snr_db == float("inf") else f"{result.snr_db:.1f} dB"
    print_line(f"against torch: SNR {snr}, largest error {result.max_abs_error:.2g}")
    print_line(f"wrote {output} (opset {result.opset})")
