from __future__ import annotations

import logging

from vsfix.pipeline.host.progress import benchmark_progress


def test_without_a_terminal_each_stage_is_a_line_of_the_log(caplog):
    caplog.set_level(logging.INFO, logger="vsfix")
    with benchmark_progress(5) as advance:
        for text in ("net.onnx", "batch 1", "batch 1", "batch 1", "batch 64"):
            advance(text)
    assert caplog.messages == ["step 1 of 5: net.onnx", "step 2 of 5: batch 1", "step 5 of 5: batch 64"]


def test_on_a_terminal_the_bar_says_it_and_the_log_nothing(caplog, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    caplog.set_level(logging.INFO, logger="vsfix")
    with benchmark_progress(2) as advance:
        advance("net.onnx")
        advance("batch 1")
    assert caplog.messages == []
    assert "batch 1" in capsys.readouterr().err
