from __future__ import annotations

import logging
import threading

import pytest

from vsfix.graph_passes.progress import Stage, listen, listening, stage


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def begin(self, stage: Stage) -> None:
        self.told.append(("begin", stage.text, stage.done))

    def move(self, stage: Stage) -> None:
        self.told.append(("move", stage.text, stage.done))

    def end(self, stage: Stage) -> None:
        self.told.append(("end", stage.text, stage.done))


def test_nobody_listens_unless_asked_to():
    assert listening() is None
    with stage("alone", 2) as alone:
        alone.step()
    assert alone.done == 1


def test_stages_in_each_other_are_told_in_their_order():
    heard = Heard()
    with listen(heard), stage("outer"), stage("inner", 3, done=1) as inner:
        inner.step()
        inner.step("inner, nearly")
    assert heard.told == [
        ("begin", "outer", 0),
        ("begin", "inner", 1),
        ("move", "inner", 2),
        ("move", "inner, nearly", 3),
        ("end", "inner, nearly", 3),
        ("end", "outer", 0),
    ]
    assert listening() is None


def test_a_step_that_begins_ends_the_one_before():
    heard = Heard()
    with listen(heard), stage("measuring", 3) as measuring:
        for text in ("net.onnx", "batch 1", "batch 1"):
            measuring.next(text)
    assert [told for told in heard.told if told[0] == "move"] == [
        ("move", "net.onnx", 0),
        ("move", "batch 1", 1),
        ("move", "batch 1", 2),
    ]


def test_each_stage_is_a_line_of_the_log_and_steps_that_say_the_same_are_one(caplog):
    caplog.set_level(logging.INFO, logger="vsfix")
    with stage("measuring", 5) as measuring:
        for text in ("net.onnx", "batch 1", "batch 1", "batch 1", "batch 64"):
            measuring.next(text)
    assert caplog.messages == ["measuring", "step 1 of 5: net.onnx", "step 2 of 5: batch 1", "step 5 of 5: batch 64"]


def test_a_stage_that_fails_is_over():
    heard = Heard()

    @stage("failing")
    def fail() -> None:
        raise ValueError("oh no")

    with listen(heard), pytest.raises(ValueError, match="oh no"):
        fail()
    assert [told[0] for told in heard.told] == ["begin", "end"]
    assert listening() is None


def test_another_thread_tells_a_stage_only_to_whom_it_is_given():
    heard = Heard()

    def work() -> None:
        Stage("unheard").close()
        Stage("heard", listener=listener).close()

    with listen(heard):
        listener = listening()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [told[:2] for told in heard.told] == [("begin", "heard"), ("end", "heard")]
