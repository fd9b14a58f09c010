"""`vsfix export`: a trained network as an ONNX file that keeps the evidence of its noise."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.completion import files
from vsfix.pipeline.cli.options import input_shape_option, json_option, parse_numbers, parse_sides, verbose_option


@click.command(name="export")
@click.argument("source", shell_complete=files)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The ONNX file.")
@click.option("--opset", type=int, default=18, show_default=True, help="15 to 25.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The weights of the module that the factory makes: a checkpoint of torch.save, or safetensors.",
)
@click.option(
    "--weights-key", metavar="KEY", help="Where they are in FILE, as ema or state_dict.model, where it holds several."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:SHAPE[:DTYPE]",
    help="An input of the module, as image:Nx3xHxW or ids:NxT:int64:0..999. Letters are free axes, the first one that "
    "of the batch. May be given again.",
)
@input_shape_option("The one float32 input of the module, without the batch: short for --input input:NxCxHxW.")
@click.option(
    "--mean",
    callback=parse_numbers,
    metavar="X[,Y,Z]",
    help="Written into the file: what is taken from pixels / 255.",
)
@click.option("--std", callback=parse_numbers, metavar="S,S,S", help="Written too: what the difference is divided by.")
@click.option("--size", callback=parse_sides, metavar="HxW", help="Written too.  [default: that of the input]")
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Written too: names of classes, one a line.",
)
@json_option
@verbose_option
def command(
    source: str,
    output: Path,
    opset: int,
    weights: Path | None,
    weights_key: str | None,
    inputs: tuple[str, ...],
    input_shape: tuple[int, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: tuple[int, ...] | None,
    class_names: Path | None,
    json_path: str | None,
    force: bool,
) -> None:
    """Write SOURCE as an ONNX file, every BatchNorm kept and every noise layer marked, checked against torch.

    SOURCE is a vsfix checkpoint, the folder of a training run, or package.module:factory with --input or --input-shape
    (and --weights): a function without arguments that returns the module. That form imports the package and runs its
    code, and looks for it in the current folder too, as `vsfix verify --against`, --data and --metric do where they
    name a function; nothing else runs code of yours.
    """
    import vsfix
    from vsfix.pipeline.backends.model_kind import names_factory
    from vsfix.pipeline.cli.output import json_output

    is_factory = names_factory(source)
    if is_factory and bool(inputs) == (input_shape is not None):
        raise click.UsageError("a factory needs --input, as image:Nx3x32x32, or --input-shape, as 3x32x32")
    if not is_factory and (inputs or any(value is not None for value in (input_shape, weights, weights_key))):
        raise click.UsageError(
            "--input, --input-shape and --weights go with package.module:factory; a checkpoint has its own"
        )
    with json_output("export", json_path, force=force) as out:
        given = (weights, class_names, None if is_factory else _checkpoint(source))
        # Before torch is loaded, which takes seconds.
        out.require([output], inputs=[path for path in given if path is not None])
        result = vsfix.export(
            source,
            opset=opset,
            weights=weights,
            weights_key=weights_key,
            inputs=inputs,
            input_shape=input_shape,
            mean=mean,
            std=std,
            size=size,
            class_names=None if class_names is None else _lines(class_names),
        )
        result.save(output, force)
        out.show(result)
        out.wrote(f"{output} (opset {result.opset})")


def _checkpoint(source: str) -> Path:
    from vsfix.pipeline.backends.opening import checkpoint_file

    return checkpoint_file(Path(source))


def _lines(path: Path) -> list[str]:
    """The lines of a text file; empty ones at its end are none."""
    from vsfix.graph_passes.errors import InputError
    from vsfix.graph_passes.io.named_file import why_unreadable

    if (reason := why_unreadable(path)) is not None:
        raise InputError(f"--class-names {path}: {reason}")
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--class-names {path}: is no text in UTF-8; write one name a line") from None
