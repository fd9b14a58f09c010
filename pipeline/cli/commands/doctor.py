"""`vsfix doctor`: which backends work here."""

from __future__ import annotations

import click

from vsfix.pipeline.cli.options import json_option, verbose_option
from vsfix.pipeline.host.terminal_text import print_line


@click.command(name="doctor")
@click.option(
    "--install",
    type=click.Choice(["quantizer"]),
    help="First make the environment of NVIDIA ModelOpt for --precision int8 and fp8, unless it is there (1.4 GB).",
)
@json_option
@verbose_option
def command(install: str | None, json_path: str | None, force: bool) -> None:
    """Try every backend on a small model and say which work here.

    tensorrt and tensorrt-rtx build an engine of it first; where they can build and not run, they WARN. For each that
    does not work, the reason and the line that installs it. The exit code is 3 where no backend works but the slow
    reference evaluator.
    """
    from dataclasses import asdict

    from rich.table import Table

    from vsfix.graph_passes.errors import MissingComponentError
    from vsfix.pipeline.backends.doctor import can_infer, check_backends
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.host.environment import describe_environment
    from vsfix.pipeline.host.quantizer import install_quantizer, quantizer_folder

    with json_output("doctor", json_path, force=force) as out:
        out.require()
        if install == "quantizer":
            print_line(f"installing ModelOpt in {quantizer_folder()}", err=True)
            install_quantizer()
        checks = check_backends()
        works = sum(check.status == "PASS" for check in checks)
        status, verdict = "PASS" if can_infer(checks) else "SKIP", f"{works} of {len(checks)} backends work here"
        found = {"environment": describe_environment(), "backends": [asdict(check) for check in checks]}
        out.tell(status, verdict, details=found)
        table = Table(title="Backends on this machine", title_justify="left")
        for heading in ("backend", "status", "version", "why not", "what helps"):
            table.add_column(heading, overflow="fold")
        for check in checks:
            table.add_row(check.name, check.status, check.version, check.reason, check.remedy)
        out.show_view([table])
        if not can_infer(checks):
            raise MissingComponentError("no backend works here; run: pip install 'vsfix[cpu]'")
