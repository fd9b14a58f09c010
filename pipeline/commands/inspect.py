"""`vsfix inspect`: the noise that reaches each BatchNorm, and the shift it causes; changes nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from vsfix.pipeline.terminal_text import print_line

from .options import batch_size_option, data_option, html_option, json_option, samples_option, seed_option

SAMPLES = 500  # enough for a variance that is good to a percent or two, and for the inference of lost noise


@click.command(name="inspect")
@click.argument("model", type=click.Path(path_type=Path))
@data_option(required=False)
@samples_option(f"{SAMPLES} or as many as there are")
@batch_size_option
@seed_option
@html_option
@json_option
def command(
    model: Path,
    data: str | None,
    samples: int | None,
    batch_size: int,
    seed: int,
    html: Path | None,
    json_path: str | None,
    force: bool,
) -> None:
    """List the BatchNorms of MODEL, the noise that reaches each, and its shift.

    The predicted shift needs no data: it follows from the stored statistics where the noise stands directly in front.
    With --data the real variance of every BatchNorm input is measured too, and noise that the file has lost is
    inferred from its statistics. Shift is the variance at inference over the stored variance; 1 is no shift.
    """
    from vsfix.graph_passes.model_file import read_model
    from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
    from vsfix.pipeline.calibration import calibration_batches
    from vsfix.pipeline.console import print_table, require_json_target, write_json
    from vsfix.pipeline.diagnosis import judge_inspection
    from vsfix.pipeline.environment import command_line
    from vsfix.pipeline.inspection import inspect_model
    from vsfix.pipeline.inspection_page import write_inspection_page
    from vsfix.pipeline.optimization import input_files
    from vsfix.pipeline.output_file import require_outputs
    from vsfix.pipeline.tables import inspection_table

    inputs = input_files(model, data)
    require_outputs([html], force=force, inputs=inputs)
    require_json_target(json_path, force=force, inputs=inputs, outputs=[html])
    loaded = read_model(model)
    batches = (
        calibration_batches(
            loaded, data, samples=samples or SAMPLES, at_most=samples is None, batch_size=batch_size, seed=seed
        )
        if data is not None
        else []
    )
    inspection = inspect_model(loaded, batches, open_for_small_runs)
    try:
        if json_path != "-":
            for change in inspection.prepared:
                print_line(f"prepared: {change}")
            print_table(inspection_table(inspection))
            print_line(f"noise layers: {', '.join(inspection.noise_sources) or 'none'}")
            if inspection.inferred:
                print_line(f"inferred from the statistics: {inspection.inferred}")
            for warning in inspection.warnings:
                print_line(f"WARN {warning}")
            print_line(" ".join(judge_inspection(inspection)))
    finally:  # whoever reads what is printed may have gone
        if json_path:
            write_json(asdict(inspection), json_path, force=force)
        if html is not None:
            write_inspection_page(inspection, model.name, html, command=command_line(), force=force)
    if html is not None and json_path != "-":
        print_line(f"wrote {html}")
