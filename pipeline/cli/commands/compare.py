"""`vsfix compare`: what became better or worse between two benchmarks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from vsfix.pipeline.cli.options import json_option
from vsfix.pipeline.host.terminal_text import print_line


@click.command(name="compare")
@click.argument("before", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("after", type=click.Path(path_type=Path), metavar="B.json")
@click.option(
    "--fail-on",
    "rules",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="Exit code 1 where a row loses more than this: top1, retention, agreement (points), snr (dB), p50, p99, "
    "ratio, size (percent); may be given several times. A row or number that is gone fails too, and a rule that holds "
    "none.",
)
@json_option
def command(before: Path, after: Path, rules: tuple[str, ...], json_path: str | None, force: bool) -> None:
    """Compare two files of `vsfix benchmark --json`, row by row.

    Rows are the same where the name of the model file (its path, where two files of a run have one name), the backend
    and the precision are. Times within 5 % (p99: 10 %), SNRs within 0.5 dB, and ratios within 1 % or whose intervals
    overlap count as the same. A ratio is that of p50 to the first model of its run on the same backend and precision.
    """
    from vsfix.graph_passes.errors import CheckFailedError
    from vsfix.pipeline.benchmark.comparing import compare_files, parse_fail_rule
    from vsfix.pipeline.host.console import print_table, require_json_target, write_json
    from vsfix.pipeline.terminal.comparison_table import comparison_table, summary

    require_json_target(json_path, force=force, inputs=[before, after])
    found = compare_files(before, after, [parse_fail_rule(text) for text in rules])
    try:
        if json_path != "-":
            if any(change.direction != "same" for change in found.changes):
                print_table(comparison_table(found))
            for word, names in (("gone", found.gone), ("new", found.added)):
                for name in names:
                    print_line(f"{word}: {name}")
            for warning in found.warnings:
                print_line(f"WARN {warning}")
            print_line(f"{'FAIL' if found.failures else 'PASS'} {summary(found)}")
    finally:  # whoever reads what is printed may have gone
        if json_path:
            write_json(asdict(found), json_path, force=force)
    if found.failures:
        raise CheckFailedError("; ".join(found.failures))
