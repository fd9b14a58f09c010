"""`vsfix compare`: what became better or worse between two benchmarks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from vsfix.pipeline.cli.options import json_option, verbose_option


@click.command(name="compare")
@click.argument("before", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("after", type=click.Path(path_type=Path), metavar="B.json")
@click.option(
    "--fail-on",
    "rules",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="Exit code 1 where a row loses more than this: top1, top5, retention, agreement (percentage points), r2, iou, "
    "cosine (absolute; `metric` for a function of your own), snr (dB), mse, mae, bce, p50, p99, ratio, size (percent); "
    "may be given several times. A row or number that is gone fails too, and a rule that holds none.",
)
@json_option
@verbose_option
def command(before: Path, after: Path, rules: tuple[str, ...], json_path: str | None, force: bool) -> None:
    """Compare two files of `vsfix benchmark --json`, row by row.

    Rows are the same where the name of the model file (its path, where two files of a run have one name), the backend
    and the precision are; both files must be of one metric and one output. Times within 5 % (p99: 10 %), SNRs within
    0.5 dB, errors within a rounding, and ratios within 1 % or whose intervals overlap count as the same. A ratio is
    that of p50 to the first model of its run on the same backend and precision.
    """
    from vsfix.graph_passes.errors import CheckFailedError
    from vsfix.pipeline.benchmark.comparing import compare_files, parse_fail_rule
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.terminal.comparison_table import comparison_status, comparison_view, summary

    with json_output("compare", json_path, force=force) as out:
        out.require(inputs=[before, after])
        found = compare_files(before, after, [parse_fail_rule(text) for text in rules])
        details = {name: value for name, value in asdict(found).items() if name != "warnings"}
        out.tell(comparison_status(found), summary(found), found.warnings, details)
        out.show_view(comparison_view(found))
        if found.failures:
            raise CheckFailedError("; ".join(found.failures))
