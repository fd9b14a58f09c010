"""The command line `vsfix`: which commands there are, the log, and what becomes of an error.

    0   done, and passed
    1   a check ran and failed
    2   usage, or bad input
    3   a component is missing here
    4   an engine could not be parsed or built
    70  a bug in vsfix: with a traceback
    130 interrupted; 143 stopped by SIGTERM

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from vsfix.graph_passes.errors import VsfixError, missing_package
from vsfix.pipeline.host.terminal_text import print_line, printable

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
BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# A graph is a million objects that live as long as the command: Python's own thresholds, made for short lives, look
# through all of them again and again, a quarter of the time of a graph of 20,000 nodes.
_COLLECTIONS = (10_000, 20, 20)
_LONGEST_LINE = 900
_LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


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
        if args[0] not in SUMMARIES and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = "".join(f" Did you mean '{name}'?" for name in get_close_matches(args[0], SUMMARIES, n=1))
            ctx.fail(f"No such command '{args[0]}'.{near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help text, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Reads the options of the group itself."""
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; whatever goes wrong becomes one line and an exit code."""
        with _log_on_stderr(ctx.params["verbose"]), _one_line_errors(), _orderly_end():
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
def _one_line_errors() -> Iterator[None]:
    """Turns every error into one line on stderr and an exit code."""
    try:
        yield
    except VsfixError as error:
        logging.getLogger("vsfix").debug("where the error came from", exc_info=True)
        _stop(f"error: {error}", error.exit_code)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        command = "vsfix" if context is None else context.command_path
        _stop(f"error: {error.format_message()} (see `{command} --help`)", 2)
    except MemoryError as error:
        logging.getLogger("vsfix").debug("where memory ended", exc_info=True)
        _stop(f"error: not enough memory here ({error}); give fewer --samples or a smaller batch size", 2)
    except KeyboardInterrupt:
        _stop("interrupted", INTERRUPTED_EXIT_CODE)
    except _Terminated as end:
        _stop(f"stopped by {signal.Signals(end.number).name}", 128 + end.number)
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise  # click knows what to do with them
    except OSError as error:
        logging.getLogger("vsfix").debug("where the system refused", exc_info=True)
        file = "" if error.filename is None else f"{error.filename}: "
        _stop(f"error: {file}{error.strerror or error}", 2)
    except Exception as error:
        missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None:
            _stop(f"error: {missing}", missing.exit_code)
        for line in traceback.format_exc().splitlines():
            print_line(line, err=True)
        _stop(f"internal error: {type(error).__name__}: {error}", BUG_EXIT_CODE)


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


class _LineFormatter(logging.Formatter):
    """Entries of the log in one line each."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The entry without its traceback."""
        return printable(super().formatMessage(record))


@contextmanager
def _log_on_stderr(verbose: int) -> Iterator[None]:
    """Sends the log of vsfix to stderr while a command runs."""
    logger = logging.getLogger("vsfix")
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("vsfix: %(levelname)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(_LOG_LEVELS[min(verbose, len(_LOG_LEVELS) - 1)])
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
