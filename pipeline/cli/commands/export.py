"""`vsfix export`: a trained network as an ONNX file that keeps the evidence of its noise."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.options import input_shape_option


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
    import vsfix
    from vsfix.pipeline.backends.opening import checkpoint_file
    from vsfix.pipeline.cli.output import Output
    from vsfix.pipeline.host.output_file import require_output

    is_factory = ":" in source and not Path(source).exists()
    if is_factory and input_shape is None:
        raise click.UsageError("a factory needs --input-shape, as 3x32x32")
    if not is_factory and (input_shape is not None or weights is not None):
        raise click.UsageError("--input-shape and --weights go with package.module:factory; a checkpoint has its own")
    inputs = [weights] if weights is not None else [] if is_factory else [checkpoint_file(Path(source))]
    # Before torch is loaded, which takes seconds.
    require_output(output, force=force, inputs=inputs)
    result = vsfix.export(source, opset=opset, weights=weights, input_shape=input_shape)
    result.save(output, force)
    out = Output(is_alone=False)
    out.show(result)
    out.wrote(f"{output} (opset {result.opset})")
