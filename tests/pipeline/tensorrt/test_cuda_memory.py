from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.tensorrt.cuda_memory import TensorBuffer
from vsfix.pipeline.tensorrt.cuda_runtime import Cuda
from vsfix.pipeline.tensorrt.cuda_stream import Stream

from .fake_cuda import FakeCuda, Status


def test_a_tensor_goes_to_the_gpu_and_back_once_the_stream_is_through():
    cuda = Cuda(FakeCuda())
    stream, buffer = Stream(cuda), TensorBuffer(cuda, (2, 3), np.float32)
    buffer.host[...] = [[1, 2, 3], [4, 5, 6]]
    buffer.upload(stream)
    stream.synchronize()
    buffer.host[...] = 0
    buffer.download(stream)
    assert not buffer.host.any()
    stream.synchronize()
    np.testing.assert_array_equal(buffer.host, [[1, 2, 3], [4, 5, 6]])
    buffer.close()
    stream.close()
    assert cuda.runtime.is_clean()


def test_too_little_memory_is_the_fault_of_the_data_and_leaves_nothing_behind(monkeypatch):
    cuda = Cuda(FakeCuda(room=15))
    with pytest.raises(DataError, match="smaller batch size"):
        TensorBuffer(cuda, (4,), np.float32)
    monkeypatch.setattr(FakeCuda, "cudaHostAlloc", lambda *_: (Status.cudaErrorMemoryAllocation, None))
    with pytest.raises(DataError):
        TensorBuffer(cuda, (3,), np.float32)
    assert cuda.runtime.is_clean()
