"""Signals as requests: what is running comes to an orderly end on Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signal: the number of the signal that asked; 0 where none did.
    """

    signal: int = 0


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yields the request that the first such signal makes; the next one does what it would have done.

    Outside the main thread Python can't take signals, and no request is ever made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def take(number: int, frame: object) -> None:
        request.signal = number
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        # Who starts a process in the background may have it ignore Ctrl-C.
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, take)
    try:
        yield request
    finally:
        put_back()
