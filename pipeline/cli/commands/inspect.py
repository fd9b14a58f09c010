"""`vsfix inspect`: the noise that reaches each BatchNorm, and the shift it causes; changes nothing."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.options import (
    batch_size_option,
    data_option,
    html_option,
    json_option,
    noise_option,
    normalization_options,
    output_kind_option,
    parse_output_kinds,
    samples_option,
    seed_option,
    verbose_option,
)


@click.command(name="inspect")
@click.argument("model", type=click.Path(path_type=Path))
@data_option(required=False)
@samples_option("500 or as many as there are")
@batch_size_option
@noise_option
@output_kind_option
@normalization_options
@seed_option
@html_option
@json_option
@verbose_option
def command(
    model: Path,
    data: str | None,
    samples: int | None,
    batch_size: int,
    noise: tuple[str, ...],
    output_kinds: tuple[str, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    size: tuple[int, ...] | None,
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
    import vsfix
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.output_file import input_files

    with json_output("inspect", json_path, force=force) as out:
        out.require([html], inputs=input_files(model, data))
        found = vsfix.inspect(
            model,
            data,
            noise=noise,
            samples=samples,
            batch_size=batch_size,
            output_kinds=parse_output_kinds(output_kinds),
            mean=mean,
            std=std,
            size=size,
            seed=seed,
        )
        try:
            out.show(found)
        finally:  # whoever reads what is printed may have gone
            if html is not None:
                found.to_html(html, force)
        out.wrote(html)
