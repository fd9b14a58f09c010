"""`vsfix build`: an ONNX file as a TensorRT engine, proven as far as this machine can."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.options import json_option, parse_bytes
from vsfix.pipeline.host.terminal_text import print_line


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
    type=click.Choice(["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]),
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
    from vsfix.graph_passes.io.external_data import external_data_files
    from vsfix.pipeline.building.build_config import BuildConfig
    from vsfix.pipeline.building.building import build_engine
    from vsfix.pipeline.cli.build_progress import build_progress
    from vsfix.pipeline.cli.build_table import build_lines, layers_table
    from vsfix.pipeline.host.console import print_table, require_json_target, write_json
    from vsfix.pipeline.tensorrt.engine_file import sidecar_path
    from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions

    config = BuildConfig(
        runtime=runtime,
        shapes=ShapeOptions(shapes, min_shapes, opt_shapes, max_shapes),
        targets=tuple(name.strip().lower() for name in target.split(",")),
        precision=precision,
        workspace=None if workspace is None else parse_bytes(workspace, "--workspace"),
        timing_cache=timing_cache,
    )
    require_json_target(
        json_path,
        force=force,
        inputs=[model, *external_data_files(model)],
        outputs=[output, sidecar_path(output), timing_cache],
    )
    with build_progress() as progress:
        report = build_engine(model, output, config, force=force, progress=progress)
    try:
        if json_path != "-":
            print_table(layers_table(report))
            for line in build_lines(report, output):
                print_line(line)
    finally:  # whoever reads what is printed may have gone
        if json_path:
            write_json(report.to_dict(), json_path, force=force)
