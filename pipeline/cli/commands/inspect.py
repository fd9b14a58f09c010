"""`vsfix inspect`: the noise that reaches each BatchNorm, and the shift it causes; changes nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsfix.pipeline.cli.options import (
    batch_size_option,
    data_option,
    html_option,
    json_option,
    noise_option,
    output_kind_option,
    parse_output_kinds,
    samples_option,
    seed_option,
)
from vsfix.pipeline.host.terminal_text import print_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vsfix.graph_passes.statistics.batches import Batch

SAMPLES = 500  # enough for a variance that is good to a percent or two, and for the inference of lost noise


@click.command(name="inspect")
@click.argument("model", type=click.Path(path_type=Path))
@data_option(required=False)
@samples_option(f"{SAMPLES} or as many as there are")
@batch_size_option
@noise_option
@output_kind_option
@seed_option
@html_option
@json_option
def command(
    model: Path,
    data: str | None,
    samples: int | None,
    batch_size: int,
    noise: tuple[str, ...],
    output_kinds: tuple[str, ...],
    seed: int,
    html: Path | None,
    json_path: str | None,
    force: bool,
) -> None:
    """Say how far MODEL is from the network that was trained, and list its BatchNorms with their noise and shift.

    A network trained with noise is the average over that noise. With --data and noise that is known, R is how far the
    deployed network is from it, in units of what one draw of the noise does; below a bound that depends on the
    outputs there is nothing to repair.

    The predicted shift needs no data: it follows from the stored statistics where the noise stands directly in front.
    With --data the real variance of every BatchNorm input is measured too, and noise that the file has lost is
    inferred from its statistics. Shift is the variance at inference over the stored variance; 1 is no shift.
    """
    from vsfix.graph_passes.io.model_file import export_model, read_model
    from vsfix.graph_passes.statistics.batches import count_samples
    from vsfix.optimization import MATCHED, input_files
    from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
    from vsfix.pipeline.cli.tables import inspection_table
    from vsfix.pipeline.data.calibration import calibration_batches
    from vsfix.pipeline.host.console import print_table, require_json_target, write_json
    from vsfix.pipeline.host.environment import command_line
    from vsfix.pipeline.host.output_file import require_outputs
    from vsfix.pipeline.inspection.diagnosis import judge_inspection, severity_sentence
    from vsfix.pipeline.inspection.inspection import InspectionConfig, inspect_model
    from vsfix.pipeline.inspection.preparation import prepare_model
    from vsfix.pipeline.pages.inspection_page import write_inspection_page

    inputs = input_files(model, data)
    require_outputs([html], force=force, inputs=inputs)
    require_json_target(json_path, force=force, inputs=inputs, outputs=[html])
    loaded = read_model(model)
    # What the data must hold is asked of the prepared model: an input that only switches Dropout is gone from it.
    deployable = export_model(prepare_model(loaded, noise, needs_batch_norms=False).graph, loaded)
    config = InspectionConfig(noise, parse_output_kinds(output_kinds), seed)

    def draw(count: int) -> Sequence[Batch]:
        """What is drawn of the data, as `vsfix optimize` draws it."""
        if data is None:
            return []
        return calibration_batches(
            deployable, data, samples=samples or count, at_most=samples is None, batch_size=batch_size, seed=seed
        )

    batches = draw(SAMPLES)
    averaged_on = draw(MATCHED) if samples is None and count_samples(batches) > MATCHED else ()
    inspection = inspect_model(loaded, batches, open_for_small_runs, config, averaged_on=averaged_on)
    status, verdict = judge_inspection(inspection)
    try:
        if json_path != "-":
            for change in inspection.prepared:
                print_line(f"prepared: {change}")
            if inspection.rows:
                print_table(inspection_table(inspection))
            print_line(f"noise layers: {', '.join(inspection.noise_sources) or 'none'}")
            if inspection.inferred:
                print_line(f"inferred from the statistics: {inspection.inferred}")
            for line in inspection.outputs:
                print_line(f"output {line}")
            if inspection.severity is not None and inspection.stored:
                print_line(f"with the statistics as they are stored: {severity_sentence(inspection.severity)}")
            for warning in inspection.warnings:
                print_line(f"WARN {warning}")
            print_line(f"{status} {verdict}")
    finally:  # whoever reads what is printed may have gone
        if json_path:
            write_json(asdict(inspection) | {"status": status, "verdict": verdict}, json_path, force=force)
        if html is not None:
            write_inspection_page(inspection, model.name, html, command=command_line(), force=force)
    if html is not None and json_path != "-":
        print_line(f"wrote {html}")
