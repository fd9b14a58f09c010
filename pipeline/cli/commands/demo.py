"""`vsfix demo`: the whole chain on embedded real images."""

from __future__ import annotations

from pathlib import Path

import click

from vsfix.pipeline.cli.options import json_path_option, verbose_option
from vsfix.pipeline.host.terminal_text import print_line


@click.command(name="demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("vsfix-demo"),
    show_default=True,
    help="The folder for the models and the report.",
)
@click.option("--force", is_flag=True, help="Replace what stands in the folder.")
@json_path_option
@verbose_option
def command(output: Path, force: bool, json_path: str | None) -> None:
    """Train, export, repair, fold and verify a small network on handwritten digits.

    The network has strong Dropout directly upstream of BatchNorm. As trained, matched with 32 unlabelled images,
    re-estimated over all of them, and the mean of noisy passes stand beside each other. Everything runs on the CPU in
    about a minute and ends with a report.
    """
    from dataclasses import asdict

    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.environment import command_line
    from vsfix.pipeline.reproduction.demo import run_demo
    from vsfix.pipeline.terminal.tables import demo_view

    with json_output("demo", json_path, force=force) as out:
        out.require()
        demo = run_demo(output, force=force, say=lambda line: print_line(line, err=True), command=command_line())
        found = {
            "report": demo.report,
            "accuracies": [asdict(row) for row in demo.accuracies],
            "steps": [asdict(row) for row in demo.steps],
            "repair": asdict(demo.repair.report),
        }
        out.tell(demo.status, demo.verdict, demo.repair.report.warnings, found)
        out.show_view(demo_view(demo.repair.report, demo.accuracies, demo.steps))
        out.show_view([f"{demo.status} {demo.verdict}", f"report: {demo.report}"])
