"""`vsfix build`: an ONNX file as a TensorRT engine, proven as far as this machine can."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.completion import PRECISIONS
from vsfix.pipeline.cli.options import json_option, verbose_option


@click.command(name="build")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The engine (plan) file.")
@click.option(
    "--runtime",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="tensorrt builds for the GPU of this machine; tensorrt-rtx for --target, with no GPU needed.",
)
@click.option(
    "--shapes",
    metavar="NAME:1x3x32x32,...",
    help="Shapes of the inputs with a dynamic axis; NAME:[1,3,32,32] is read too.  [default: the model's own]",
)
@click.option("--min-shapes", metavar="...", help="The smallest shapes.  [default: --shapes, else the optimum]")
@click.option("--opt-shapes", metavar="...", help="The shapes to tune for.  [default: --shapes, else the largest]")
@click.option("--max-shapes", metavar="...", help="The largest shapes.  [default: --shapes, else the optimum]")
@click.option(
    "--target",
    default="current",
    show_default=True,
    metavar="sm80,sm89,...",
    help="For tensorrt-rtx: compute capabilities to build for, or the GPU of this machine.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="What must come out, else it is an error; tf32 lets products round float32.  "
    "[default: as the file is, TF32 off]",
)
@click.option("--workspace", metavar="SIZE", help="Limit of scratch memory, as 512M.  [default: the GPU's memory]")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measured timings, read and written.  [default: one in your cache folder; tensorrt-rtx keeps none]",
)
@json_option
@verbose_option
def command(
    model: Path,
    output: Path,
    runtime: str,
    shapes: str | None,
    min_shapes: str | None,
    opt_shapes: str | None,
    max_shapes: str | None,
    target: str,
    precision: str | None,
    workspace: str | None,
    timing_cache: Path | None,
    json_path: str | None,
    force: bool,
) -> None:
    """Build MODEL into the engine OUTPUT, with what is known of it in OUTPUT.json.

    The engine computes in the types of the file: cast it with `vsfix optimize --precision`. The weights that TensorRT
    reads from the file, BatchNorms folded into one scale among them, are held against float64 first.
    """
    import vsfix
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.output_file import input_files
    from vsfix.pipeline.tensorrt.engine_file import sidecar_path

    with json_output("build", json_path, force=force) as out:
        sidecar = sidecar_path(output)
        out.require([output, sidecar], inputs=input_files(model), rewritten=[timing_cache])
        engine = vsfix.build(
            model,
            runtime=runtime,
            shapes=shapes,
            min_shapes=min_shapes,
            opt_shapes=opt_shapes,
            max_shapes=max_shapes,
            targets=target,
            precision=precision,
            workspace=workspace,
            timing_cache=timing_cache,
        )
        engine.save(output, force)
        out.show(engine.at(output))
        out.wrote(f"{output} ({engine.summary})", sidecar)
