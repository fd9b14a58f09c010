"""What the passes need of a runtime: something that opens a model and runs it. They get it as an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from typing_extensions import Self

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]


class Runner(Protocol):
    """An opened model. It owns its session: use it as a context manager."""

    @property
    def name(self) -> str:
        """What runs here, as a report would say it, e.g. `onnxruntime (CPUExecutionProvider)`."""

    @property
    def concurrency(self) -> int:
        """How many threads should be inside `run` at the same time; 1 where it takes the whole device by itself."""

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
