from __future__ import annotations

import numpy as np
import pytest

from vsfix.pipeline.tensorrt.cuda_memory import TensorBuffer
from vsfix.pipeline.tensorrt.cuda_runtime import Cuda
from vsfix.pipeline.tensorrt.cuda_stream import Capture, Stream

from .fake_cuda import RUBBISH, FakeCuda


def test_what_is_recorded_runs_when_it_is_launched_and_not_before():
    cuda = Cuda(FakeCuda())
    stream, buffer = Stream(cuda), TensorBuffer(cuda, (1,), np.uint8)
    with Capture(cuda, stream) as capture:
        buffer.download(stream)
    buffer.host[0] = 7
    stream.synchronize()
    assert buffer.host[0] == 7
    capture.graph.launch(stream)
    stream.synchronize()
    assert buffer.host[0] == RUBBISH
    for resource in (capture.graph, buffer, stream):
        resource.close()
    assert cuda.runtime.is_clean()


def test_an_error_while_recording_leaves_nothing_behind():
    cuda = Cuda(FakeCuda())
    stream = Stream(cuda)
    with pytest.raises(ZeroDivisionError), Capture(cuda, stream):
        raise ZeroDivisionError
    stream.synchronize()
    stream.close()
    assert cuda.runtime.is_clean()
