"""The command line `vsfix`: which commands there are, the log, and what becomes of an error.

A command's module is imported when the command is called, so that `vsfix --help` loads no numpy, onnx or torch.
"""

from __future__ import annotations

import gc
import importlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vsfix.pipeline.host.progress import shown_progress
from vsfix.pipeline.host.terminal_text import print_line

from .failure import BUG_EXIT_CODE, failure_of, wants_json_on_stdout
from .log import command_log

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SUMMARIES = {
    "demo": "Run the whole chain on embedded real images, with a report.",
    "train": "Train a network of the paper with noise at a site of the paper.",
    "export": "Write a trained network as ONNX, BatchNorms kept, noise marked.",
    "inspect": "List the BatchNorms, the noise that reaches each, and its shift.",
    "optimize": "Repair the statistics, remove the noise markers, fold, cast.",
    "build": "Build a TensorRT engine and prove what is in it.",
    "package": "Make a Triton model repository of a model or of engines.",
    "verify": "Compare two models or runtimes, number by number.",
    "benchmark": "Compare models, backends and precisions on labelled data.",
    "compare": "Say what became better or worse between two benchmarks.",
    "reproduce": "Make tables of the paper, as grids of training runs.",
    "doctor": "Say which backends work here, and what installs the others.",
}
INTERRUPTED_EXIT_CODE = 130
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# A graph is a million objects that live as long as the command: Python's own thresholds, made for short lives, look
# through all of them again and again, a quarter of the time of a graph of 20,000 nodes.
_COLLECTIONS = (10_000, 20, 20)
_LONGEST_LINE = 900
_WORDS = "vsfix.words"  # of the command line, from the name of the command on


class LazyGroup(click.Group):
    """The commands of `SUMMARIES`, each in a module of `vsfix.pipeline.cli.commands` under the name `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a user's work."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the module of one command."""
        if cmd_name not in SUMMARIES:
            return None
        command = importlib.import_module(f"vsfix.pipeline.cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was typed; of one that is none, what may have been meant."""
        ctx.meta[_WORDS] = tuple(args)
        if args[0] not in SUMMARIES and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = "".join(f" Did you mean '{name}'?" for name in get_close_matches(args[0], SUMMARIES, n=1))
            ctx.fail(f"No such command '{args[0]}'.{near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help text, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands for a shell, from the table alone, and the options of the group."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=text) for name, text in SUMMARIES.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Reads the options of the group itself."""
        with _one_line_errors({}):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; whatever goes wrong becomes one line and an exit code."""
        with command_log() as ctx.obj, _one_line_errors(ctx.meta), shown_progress(), _orderly_end():
            ctx.obj.add(ctx.params["verbose"])
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="vsfix")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; -vv says everything.")
@click.pass_context
def vsfix(ctx: click.Context, verbose: int) -> None:
    """Find and repair the variance shift that Dropout leaves in BatchNorm, on the ONNX file that you deploy.

    Results go to stdout, the log to stderr. Exit codes: 0 done and passed, 1 a check failed, 2 bad input or usage, 3 a
    component is missing here, 4 an engine could not be built.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main() -> NoReturn:
    """The entry point of the installed script `vsfix`; ends the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: not every terminal has every letter
    # A notebook names the backend of its own figures there, which need not be installed here; nothing is shown here.
    os.environ.pop("MPLBACKEND", None)
    gc.set_threshold(*_COLLECTIONS)
    vsfix(prog_name="vsfix")
    raise AssertionError("click ends the process itself")


@contextmanager
def _one_line_errors(meta: Mapping[str, Any]) -> Iterator[None]:
    """Turns every error into one line on stderr and an exit code.

    Args:
        meta: of the context; where the command line can't be read, `--json -` is looked for in its words.
    """
    try:
        yield
    except KeyboardInterrupt:
        _stop("interrupted", INTERRUPTED_EXIT_CODE)
    except _Terminated as end:
        _stop(f"stopped by {signal.Signals(end.number).name}", 128 + end.number)
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise  # click knows what to do with them
    except Exception as error:
        if _was_interrupted(error):
            _stop("interrupted", INTERRUPTED_EXIT_CODE)
        failure = failure_of(error)
        if failure.exit_code == BUG_EXIT_CODE:
            for line in traceback.format_exc().splitlines():
                print_line(line, err=True)
        elif not isinstance(error, click.ClickException):
            logging.getLogger("vsfix").debug("where the error came from", exc_info=True)
        elif wants_json_on_stdout(words := meta.get(_WORDS, ())):
            from vsfix.pipeline.host.console import envelope, write_json

            write_json(envelope(words[0], failure.status, failure.message, ()), "-", force=False)
        _stop(failure.line, failure.exit_code)


def _was_interrupted(error: BaseException) -> bool:
    """Whether an error came up while Ctrl-C was passing through, as where a library was cut off in the middle."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class _Terminated(BaseException):
    """A signal asked the process to end; like Ctrl-C it passes through every `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Has the signals that end a process unwind it first, so that no temporary file is left."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python can't take signals
        return

    heard: list[int] = []

    def end(number: int, frame: object) -> NoReturn:
        heard.append(number)
        raise _Terminated(number)

    taken = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except Exception:
        if heard:  # what a library has made of it
            raise _Terminated(heard[0]) from None
        raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _stop(message: str, exit_code: int) -> NoReturn:
    """Ends the program with one line on stderr, of a length that a person reads whatever a file has in its names."""
    line = " ".join(message.split())
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE * 2 // 3]} ... {line[-_LONGEST_LINE // 3 :]}"
    with suppress(OSError):  # the exit code tells it where stderr can't
        print_line(f"vsfix: {line}", err=True)
    raise click.exceptions.Exit(exit_code)
