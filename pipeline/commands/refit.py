"""`vsfix refit`: the weights of a repaired model into an engine, without a build."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.terminal_text import print_line

from .options import json_option


@click.command(name="refit")
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new engine (plan) file.")
@json_option
def command(engine: Path, model: Path, output: Path, json_path: str | None, force: bool) -> None:
    """Write ENGINE with the weights of MODEL as OUTPUT, and what is known of it as OUTPUT.json.

    ENGINE was built with `vsfix build --refit`, on a GPU like the one of this machine and with its version of TensorRT.
    MODEL is the same network in the same precision with other values: the file that `vsfix optimize` has repaired. Both
    are folded alike, so that a repair changes nothing but the values of weights that keep their names.
    """
    from vsfix.graph_passes.external_data import external_data_files
    from vsfix.pipeline.backends.engine_file import sidecar_path
    from vsfix.pipeline.console import require_json_target, write_json
    from vsfix.pipeline.refitting import refit

    require_json_target(
        json_path,
        force=force,
        inputs=[engine, sidecar_path(engine), model, *external_data_files(model)],
        outputs=[output, sidecar_path(output)],
    )
    report = refit(engine, model, output, force=force)
    try:
        if json_path != "-":
            print_line(
                f"weights: {len(report.changed)} new, {len(report.also_set)} set again, {report.kept} as they were"
            )
            print_line(f"wrote {output}")
            print_line(f"wrote {sidecar_path(output)}")
    finally:  # whoever reads what is printed may have gone
        if json_path:
            write_json(report.document, json_path, force=force)
