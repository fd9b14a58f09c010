"""`vsfix demo`: the whole chain on embedded real images."""

from __future__ import annotations

from pathlib import Path

import click

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
def command(output: Path, force: bool) -> None:
    """Train, export, repair, fold and verify a small network on handwritten digits.

    The network has strong Dropout directly upstream of BatchNorm. As trained, matched with 32 unlabelled images,
    re-estimated over all of them, and the mean of noisy passes stand beside each other. Everything runs on the CPU in
    about a minute and ends with a report.
    """
    from vsfix.pipeline.host.console import print_table, progress_wanted
    from vsfix.pipeline.host.environment import command_line
    from vsfix.pipeline.reproduction.demo import run_demo
    from vsfix.pipeline.terminal.tables import accuracy_table, candidate_table, repair_table, severity_lines, step_table

    demo = run_demo(
        output,
        force=force,
        progress=progress_wanted(),
        say=lambda line: print_line(line, err=True),
        command=command_line(),
    )
    print_table(repair_table(demo.repair.report))
    print_table(candidate_table(demo.repair.report))
    for line in severity_lines(demo.repair.report):
        print_line(line)
    print_table(accuracy_table(demo.accuracies))
    print_table(step_table(demo.steps))
    print_line(f"{demo.status} {demo.verdict}")
    print_line(f"report: {demo.report}")
