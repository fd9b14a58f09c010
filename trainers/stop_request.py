"""SIGTERM as a request: what is running comes to an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        made: set by the signal.
    """

    made: bool = False


@contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Yields the request that a SIGTERM makes; a second SIGTERM ends the process at once, as ever.

    Outside the main thread Python can't take signals, and no request is ever made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.getsignal(signal.SIGTERM)

    def take(number: int, frame: object) -> None:
        request.made = True
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, take)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
