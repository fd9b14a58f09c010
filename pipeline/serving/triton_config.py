"""A model's configuration for the Triton Inference Server: `config.pbtxt`, a ModelConfig in protobuf's text format.

The message: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto

Engines get `cc_model_filenames` and no file of the default name: on a GPU that is not listed Triton looks for
`model.plan`, finds none and refuses, instead of loading a plan of another GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .served_model import ServedModel, ServedTensor
from .text_format import Message, Value, Word, text_format

DEVICES = ("auto", "gpu", "cpu")
_BACKENDS = {True: ("tensorrt", "tensorrt_plan"), False: ("onnxruntime", "onnxruntime_onnx")}
_RANDOM = ("FP16", "BF16", "FP32", "FP64")  # a whole number drawn at random may be an index past the end


@dataclass(frozen=True)
class Batching:
    """How requests become batches.

    Attributes:
        largest: the most in a batch; 0 where the shapes of requests hold the batch themselves.
        delay: how long a request waits for others, in microseconds.
    """

    largest: int
    delay: int = 0


@dataclass(frozen=True)
class TritonConfig:
    """The content of a configuration.

    Attributes:
        name: of the model and its folder.
        model: what is served.
        batching: how requests become batches.
        device: `gpu`, `cpu`, or `auto` for the GPU where there is one.
        label_files: the file of class names of an output, by its name.
    """

    name: str
    model: ServedModel
    batching: Batching
    device: str = "auto"
    label_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """The backend of Triton that runs it."""
        return _BACKENDS[self.model.is_engine][0]

    @property
    def is_warmed_up(self) -> bool:
        """Whether the shapes of a request are known, so that the server can run some before it takes any."""
        return all(tensor.name in self.model.usual_shapes for tensor in self.model.inputs)

    def to_text(self) -> str:
        """The content of `config.pbtxt`."""
        return text_format(list(self._fields()))

    def _fields(self) -> Iterator[tuple[str, Value]]:
        backend, platform = _BACKENDS[self.model.is_engine]
        yield from (("name", self.name), ("backend", backend), ("platform", platform))
        yield "max_batch_size", self.batching.largest
        for tensor in self.model.inputs:
            yield "input", self._tensor(tensor)
        for tensor in self.model.outputs:
            yield "output", self._tensor(tensor)
        for capability, file in self.model.capabilities.items():
            yield "cc_model_filenames", [("key", capability), ("value", file)]
        instances: Message = [("count", 1), ("kind", Word(f"KIND_{self.device.upper()}"))]
        yield "instance_group", instances
        if self.batching.largest > 1:
            delay = self.batching.delay
            yield "dynamic_batching", [("max_queue_delay_microseconds", delay)] if delay else []
        if self.is_warmed_up:
            for size in sorted({1, max(1, self.batching.largest)}):
                yield "model_warmup", self._warm_up(size)

    def _tensor(self, tensor: ServedTensor) -> Message:
        """An input or output. Triton takes no tensor without axes: it exchanges one number and reshapes."""
        dims = tensor.shape[1:] if self.batching.largest else tensor.shape
        fields: list[tuple[str, Value]] = [("name", tensor.name), ("data_type", Word(f"TYPE_{tensor.type}"))]
        fields.append(("dims", dims or (1,)))
        if not dims:
            fields.append(("reshape", []))
        if tensor.name in self.label_files:
            fields.append(("label_filename", self.label_files[tensor.name]))
        return fields

    def _warm_up(self, size: int) -> Message:
        """One request of `size` samples, made before the server takes any."""
        inputs: list[tuple[str, Value]] = []
        for tensor in self.model.inputs:
            shape = self.model.usual_shapes[tensor.name]
            dims = shape[1:] if self.batching.largest else shape
            data = "random_data" if tensor.type in _RANDOM else "zero_data"
            value: Message = [("data_type", Word(f"TYPE_{tensor.type}")), ("dims", dims or (1,)), (data, True)]
            inputs.append(("inputs", [("key", tensor.name), ("value", value)]))
        return [("name", f"batch {size}"), ("batch_size", size), *inputs]
