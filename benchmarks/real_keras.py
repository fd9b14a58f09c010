"""Networks of Keras in HDF5 files as modules of torch, layer by layer; and the answers of TensorFlow itself.

Images come channels first, (N, C, H, W), where Keras has them last. Needs h5py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_entry import Array, Missing
from torch import nn
from torch.nn import functional

ACTIVATIONS = {"elu": functional.elu, "relu": torch.relu, "linear": lambda x: x, "softmax": lambda x: x.softmax(-1)}


class KerasNetwork(nn.Module):
    """The layers of a functional model in their order, each with the names of those that it reads.

    Known are InputLayer, BatchNormalization, Conv2D, Dense, Dropout, Concatenate, Flatten, Activation, the pools and
    GlobalAveragePooling2D.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import h5py
        except ImportError:
            raise Missing("pip install h5py") from None
        with h5py.File(path, "r") as file:
            entries = json.loads(file.attrs["model_config"])["config"]["layers"]
            held = {entry["name"]: _weights(file["model_weights"], entry["name"]) for entry in entries}
        self.order = [(entry["name"], entry["class_name"], entry["config"], _given(entry)) for entry in entries]
        self.layers = nn.ModuleDict()
        for name, kind, config, _ in self.order:
            layer = _layer(kind, config, held[name])
            if layer is not None:
                self.layers[_key(name)] = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The answer of the last layer."""
        values: dict[str, torch.Tensor] = {}
        for name, kind, config, given in self.order:
            inputs = [values[entry] for entry in given]
            values[name] = x if kind == "InputLayer" else self._apply(name, kind, config, inputs)
        return values[name]

    def _apply(self, name: str, kind: str, config: dict[str, Any], inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        x = inputs[0]
        if kind == "Concatenate":
            return torch.cat(list(inputs), 1)
        if kind == "Flatten":
            return x.permute(0, 2, 3, 1).flatten(1)
        if kind == "GlobalAveragePooling2D":
            return x.mean((2, 3))
        if kind == "Activation":
            return ACTIVATIONS[config["activation"]](x)
        if kind == "Conv2D" and config["padding"] == "same":
            height, width = config["kernel_size"]
            x = functional.pad(x, ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2))
        x = self.layers[_key(name)](x)
        return ACTIVATIONS[config["activation"]](x) if kind in ("Conv2D", "Dense") else x


def _key(name: str) -> str:
    return "layer_" + name.replace(".", "_")


def _given(entry: dict[str, Any]) -> list[str]:
    nodes = entry["inbound_nodes"]
    return [given[0] for given in nodes[0]] if nodes else []


def _weights(groups: Any, name: str) -> dict[str, Array]:
    """By the last part of their names: kernel, bias, gamma, beta, moving_mean, moving_variance."""
    group = groups[name]
    names = [text.decode() if isinstance(text, bytes) else str(text) for text in group.attrs["weight_names"]]
    return {text.rpartition("/")[2].partition(":")[0]: np.asarray(group[text], dtype=np.float32) for text in names}


def _layer(kind: str, config: dict[str, Any], held: dict[str, Array]) -> nn.Module | None:
    if kind == "BatchNormalization":
        return batch_norm(held, config["epsilon"], is_flat=config["axis"] == [1])
    if kind == "Conv2D":
        return convolution(held["kernel"], held.get("bias"))
    if kind == "Dense":
        return linear(held["kernel"], held["bias"])
    if kind == "Dropout":
        return nn.Dropout(config["rate"])
    if kind in ("AveragePooling2D", "MaxPooling2D"):
        pool = nn.AvgPool2d if kind.startswith("Average") else nn.MaxPool2d
        return pool(tuple(config["pool_size"]), tuple(config["strides"]))
    return None


def batch_norm(held: dict[str, Array], epsilon: float, is_flat: bool) -> nn.Module:
    """A BatchNorm with the statistics that are held."""
    layer = (nn.BatchNorm1d if is_flat else nn.BatchNorm2d)(len(held["gamma"]), eps=epsilon)
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    state = {name: torch.from_numpy(held[theirs]) for name, theirs in names.items()}
    layer.load_state_dict(state, strict=False)
    return layer


def convolution(kernel: Array, bias: Array | None) -> nn.Conv2d:
    """A convolution without padding, its kernel as TensorFlow has it, (height, width, in, out)."""
    height, width, given, made = kernel.shape
    layer = nn.Conv2d(given, made, (height, width), bias=bias is not None)
    state = {"weight": torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())}
    layer.load_state_dict(state if bias is None else state | {"bias": torch.from_numpy(bias)})
    return layer


def linear(kernel: Array, bias: Array) -> nn.Linear:
    """A dense layer, its kernel as TensorFlow has it, (in, out)."""
    layer = nn.Linear(*kernel.shape)
    layer.load_state_dict({"weight": torch.from_numpy(kernel.T.copy()), "bias": torch.from_numpy(bias)})
    return layer


_ORIGINAL = """
import sys, numpy as np
kind, path, given, written = sys.argv[1:]
x = np.load(given)
if kind == "keras":
    from tensorflow.keras.models import load_model
    y = load_model(path, compile=False).predict(x, verbose=0)
else:
    import tensorflow as tf
    tf.compat.v1.disable_eager_execution()
    sys.path.insert(0, path)
    from musicnn import models
    place = tf.compat.v1.placeholder(tf.float32, [None, *x.shape[1:]])
    with tf.name_scope("model"):
        answer = tf.nn.sigmoid(models.define_model(place, False, kind, 50)[0])
    with tf.compat.v1.Session() as session:
        tf.compat.v1.train.Saver().restore(session, f"{path}/musicnn/{kind}/")
        y = session.run(answer, {place: x})
np.save(written, y)
"""


def original_answers(python: Path, kind: str, path: Path, inputs: Array) -> Array:
    """What TensorFlow answers: `keras` for an HDF5 file, or the name of one of musicnn's models for its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "given.npy", Path(folder) / "written.npy"
        np.save(given, inputs)
        command = [str(python), "-c", _ORIGINAL, kind, str(path), str(given), str(written)]
        subprocess.run(command, check=True, capture_output=True)
        return np.asarray(np.load(written))
