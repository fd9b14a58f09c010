"""The protocol of a runtime that the passes need: it opens a model and runs it, several runs at once.

They get it as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from typing_extensions import Self

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]


_Result = TypeVar("_Result")
_AHEAD = 2  # runs that may wait for the reader of their results, for each thread


class Runner(Protocol):
    """An opened model. It owns its session: use it as a context manager."""

    @property
    def name(self) -> str:
        """The runtime and its device for a report, e.g. `onnxruntime (CPUExecutionProvider)`."""

    @property
    def concurrency(self) -> int:
        """The number of threads that should be inside `run` at once; 1 where one takes the whole device."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch.

        Args:
            inputs: one array per model input, by its name, batch first.

        Returns:
            One array per model output, by its name, in the model's order.

        Raises:
            DataError: the arrays don't fit the model's inputs.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


OpenModel = Callable[[onnx.ModelProto], Runner]


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
