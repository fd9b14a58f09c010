from __future__ import annotations

import re
import textwrap

from tests.pipeline.pseudo_terminal import on_terminal, screen_of
from vsfix.graph_passes import progress
from vsfix.pipeline.host.progress import shown_progress

PROGRAM = """
    import logging, sys, time
    from vsfix.graph_passes.progress import stage
    from vsfix.pipeline.cli.log import command_log
    from vsfix.pipeline.host.console import print_view
    from vsfix.pipeline.host.progress import shown_progress
    from vsfix.pipeline.host.terminal_text import print_line

    def work(seconds, steps=10):
        with stage("optimize"), stage("refining", steps) as refining:
            for _ in range(steps):
                time.sleep(seconds / steps)
                refining.step()

    with command_log() as log, shown_progress({patience}):
"""


def run(body: str, *, patience: float = 0.2, **options):
    """Runs the body on a terminal."""
    program = textwrap.dedent(PROGRAM).format(patience=patience) + textwrap.indent(textwrap.dedent(body), "    ")
    return on_terminal("-c", program, **options)


def test_a_terminal_reads_what_the_program_sends():
    assert screen_of("abcde", width=3) == ["abc", "de"]
    assert screen_of("one\r\n\x1b[1mtwo\x1b[0m\r\x1b[2Kthree\n\x1b[1A\r\x1b[2Kend\x1b[?25h") == ["one", "end"]


def test_what_takes_long_is_shown_and_nothing_is_left_of_it():
    session = run("work(1.5)\nprint('result')")
    assert session.code == 0
    for words in ("optimize", "refining", " left"):
        assert words in session.written
    assert re.search(r"\d/10", session.written)
    assert session.screen == ["result"]


def test_what_is_over_soon_shows_nothing():
    assert run("work(0.3)\nprint('result')", patience=60).written == "result\r\n"


def test_a_stage_that_tells_no_step_is_shown_all_the_same():
    session = run("with stage('loading'):\n    time.sleep(1)")
    assert "loading" in session.written
    assert session.screen == [""]


def test_without_a_terminal_nothing_is_shown(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown_progress(0), progress.stage("refining", 2) as refining:
        assert progress.listening() is None
        refining.step()
    assert capfd.readouterr() == ("", "")


def test_a_result_in_a_pipe_has_nothing_of_the_bars():
    session = run("work(1)\nprint_view(['one', 'two'])", pipes_stdout=True)
    assert session.stdout == "one\ntwo\n"
    assert "refining" in session.written
    assert session.screen == [""]


def test_lines_of_the_log_and_bars_do_not_tangle():
    session = run(
        """
        log.add(1)
        with stage("outer"):
            for number in range(8):
                time.sleep(0.1)
                logging.getLogger("vsfix").info("line %d", number)
                print_line(f"said {number}", err=True)
        print_view(["end"])
        """
    )
    lines = [line for number in range(8) for line in (f"vsfix: INFO: line {number}", f"said {number}")]
    assert session.screen == ["vsfix: INFO: outer", *lines, "end"]
    assert "outer" in session.written.replace("INFO: outer", "")


def test_a_name_of_a_file_gives_the_terminal_no_commands():
    session = run(r"with stage('a\x1b]0;title\x07 [red]b'): time.sleep(1)")
    assert r"a\x1b]0;title\x07 [red]b" in session.written
    assert "\x1b]" not in session.written


def test_a_narrow_terminal_cuts_the_text_and_keeps_the_numbers():
    session = run(
        "with stage('x' * 100, 10) as xs:\n    for _ in range(10):\n        time.sleep(0.1); xs.step()", width=40
    )
    assert re.search(r"\d/10", session.written)
    assert "x…" in session.written
    assert session.screen == [""]


SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.backends import doctor
from vsfix.pipeline.host import progress
progress.PATIENCE = 0.2

@stage("trying")
def check_backends():
    {work}

doctor.check_backends = check_backends
from vsfix.pipeline.cli import main
main.main()
"""


def test_ctrl_c_that_cuts_off_a_clean_up_leaves_one_clean_line():
    keys = iter([b"\x03"])
    work = """
    with stage("one by one", 9):
        try:
            time.sleep(60)
        finally:
            raise RuntimeError("cannot join thread before it is started")
    """
    session = on_terminal(
        *("-c", SLOW.format(work=work), "doctor"),
        press=lambda written: next(keys, b"") if "one by one" in written else b"",
    )
    assert (session.code, session.screen) == (130, ["vsfix: interrupted"])


def test_ctrl_c_leaves_one_clean_line():
    keys = iter([b"\x03"])

    def press(written):
        return next(keys, b"") if "one by one" in written else b""

    work = "with stage('one by one', 9): time.sleep(60)"
    session = on_terminal("-c", SLOW.format(work=work), "doctor", press=press)
    assert (session.code, session.screen) == (130, ["vsfix: interrupted"])
    assert "^C" in session.written
    assert session.written.rstrip().endswith("vsfix: interrupted")
    assert session.written.count("\x1b[?25l") == session.written.count("\x1b[?25h") == 1  # the cursor is back


def test_an_error_leaves_one_clean_line():
    session = on_terminal("-c", SLOW.format(work="time.sleep(1); raise OSError(28, 'No space left')"), "doctor")
    assert "trying" in session.written
    assert (session.code, session.screen) == (2, ["vsfix: error: No space left"])
