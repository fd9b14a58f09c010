"""Several runs of one session at once, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Result = TypeVar("_Result")
_AHEAD = 2  # runs that may wait for the reader of their results, for each thread


def side_by_side(work: Callable[[int], _Result], numbers: Iterable[int], concurrency: int) -> Iterator[_Result]:
    """The results of `work` in the order of the numbers; where one fails, those that wait are not begun.

    No more than a few results are held, however slowly they are read.

    Args:
        work: called from several threads.
        numbers: what it is called with.
        concurrency: how many threads.
    """
    if concurrency == 1:
        yield from map(work, numbers)
        return
    waiting = iter(numbers)
    with ThreadPoolExecutor(concurrency) as pool:
        begun: deque[Future[_Result]] = deque(
            pool.submit(work, number) for number in islice(waiting, _AHEAD * concurrency)
        )
        try:
            while begun:
                yield begun.popleft().result()
                begun.extend(pool.submit(work, number) for number in islice(waiting, 1))
        finally:
            for future in begun:
                future.cancel()
