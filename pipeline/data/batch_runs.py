"""Runs of a model over samples, batch after batch, in batches that the memory of the device holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from vsfix.graph_passes.errors import BuildError, DataError, OutOfMemoryError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import take_rows

from .samples import Samples

_logger = logging.getLogger(__name__)


def run_batches(runner: Runner, samples: Samples, batch_size: int) -> Iterator[tuple[slice, dict[str, Array]]]:
    """Runs a model over all samples, in their order.

    A batch that the memory does not hold is halved, for the rest of the samples as well, and a warning says so. In eval
    mode a sample's outputs do not depend on the others of its batch.

    Args:
        runner: the opened model.
        samples: what it is fed with.
        batch_size: how many at once; the last batch may be smaller.

    Yields:
        (which samples, the outputs of the model for them).

    Raises:
        OutOfMemoryError: not even one sample fits, or the model takes no smaller batch.
        DataError, ModelError, BuildError: see `run` of the runner.
    """
    with stage(f"running {runner.name}", len(samples)) as running:
        for rows, outputs in _run_batches(runner, samples, batch_size):
            yield rows, outputs
            running.set(rows.stop)


def _run_batches(runner: Runner, samples: Samples, batch_size: int) -> Iterator[tuple[slice, dict[str, Array]]]:
    """The runs, each with its part of the samples."""
    start, size = 0, min(batch_size, len(samples))
    refused: OutOfMemoryError | None = None
    while start < len(samples):
        rows = slice(start, min(start + size, len(samples)))
        try:
            outputs = runner.run(dict(take_rows(samples.inputs, rows)))
        except OutOfMemoryError as error:
            count = rows.stop - rows.start
            if count == 1:
                raise
            refused, size = error, (count + 1) // 2
            _logger.warning("%s: no memory for %d samples at once; going on with %d", runner.name, count, size)
            continue
        except (DataError, BuildError):
            if refused is not None:  # the model is made for one batch size
                raise refused from None
            raise
        refused = None
        yield rows, outputs
        start = rows.stop
