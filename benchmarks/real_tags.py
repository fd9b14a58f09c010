"""The four music taggers of musicnn, converted from their TensorFlow 1 checkpoints, on music of known instruments."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ladder_scores import file_outputs
from real_entry import Array, Case, Metric, Network, Outputs, Place, only
from real_export import both_files, input_name
from real_keras import batch_norm, convolution, linear, original_answers
from real_music import STYLES, clips
from torch import nn
from torch.nn import functional

from vsfix.graph_passes.ir.rounding import snr_db

FRAMES, BANDS = 187, 96


def read_checkpoint(folder: Path) -> dict[str, Array]:
    """The float32 tensors of a TensorFlow checkpoint of one shard and no name, without TensorFlow.

    `.index` is a table as LevelDB writes them, of a BundleEntryProto for each name (dtype 1, shape 2, offset 4,
    size 5); `.data-00000-of-00001` holds the values.
    """
    index, data = (folder / ".index").read_bytes(), (folder / ".data-00000-of-00001").read_bytes()
    place = len(index) - 48  # the footer: the handles of two blocks, of which the second lists all others
    numbers = []
    for _ in range(4):
        number, place = _varint(index, place)
        numbers.append(number)
    found = {}
    for _, handle in _block(index, *numbers[2:]):
        offset, after = _varint(handle, 0)
        size, _ = _varint(handle, after)
        for key, entry in _block(index, offset, size):
            fields = list(_fields(entry))
            held = dict(fields)
            if key and held.get(1) == 1:  # DT_FLOAT
                dims = [dict(_fields(dim)).get(1, 0) for tag, dim in _fields(held.get(2, b"")) if tag == 2]
                start = int(held.get(4, 0))
                array = np.frombuffer(data[start : start + int(held[5])], dtype="<f4")
                found[key.decode()] = array.reshape([int(size) for size in dims]).copy()
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; each key shares its beginning with the one before."""
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    place, key = 0, b""
    while place < len(block) - 4 * (restarts + 1):
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        value: int | bytes
        if tag & 7 == 0:
            value, place = _varint(message, place)
        else:
            length, place = (4, place) if tag & 7 == 5 else _varint(message, place)
            value, place = message[place : place + length], place + length
        yield tag >> 3, value


class Held:
    """The layers of a checkpoint, in the order in which TensorFlow numbered them."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._groups: dict[str, dict[str, Array]] = {}
        for name, array in tensors.items():
            folder, _, part = name.rpartition("/")
            self._groups.setdefault(folder.removeprefix("model/"), {})[part] = array

    def _named(self, kind: str, number: int) -> dict[str, Array]:
        return self._groups[kind if number == 0 else f"{kind}_{number}"]

    def norm(self, number: int, is_flat: bool = False) -> nn.Module:
        """A BatchNorm; tf.layers' epsilon."""
        return batch_norm(self._named("batch_normalization", number), 0.001, is_flat)

    def conv(self, number: int) -> nn.Conv2d:
        """A convolution without padding."""
        held = self._named("conv2d", number)
        return convolution(held["kernel"], held["bias"])

    def conv_named(self, name: str) -> nn.Conv2d:
        """The same by its name."""
        return convolution(self._groups[name]["kernel"], self._groups[name]["bias"])

    def dense(self, number: int) -> nn.Linear:
        """A dense layer."""
        held = self._named("dense", number)
        return linear(held["kernel"], held["bias"])


class Musicnn(nn.Module):
    """musicnn/models.py, build_musicnn: the Dropouts of `backend` reach the BatchNorm of its dense layer alone."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.first = held.norm(0)
        self.convs = nn.ModuleList(held.conv(number) for number in range(8))
        self.norms = nn.ModuleList(held.norm(number + 1) for number in range(8))
        self.flat_norm, self.dense_norm = held.norm(9, is_flat=True), held.norm(10, is_flat=True)
        self.dense, self.last = held.dense(0), held.dense(1)
        self.dropouts = nn.ModuleList(nn.Dropout(0.5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities of 50 tags, (N, 50), of log mel spectra (N, 187, 96)."""
        x = self.first(x[:, None])  # (N, 1, time, bands)
        parts = []
        for number in range(5):
            conv, height = self.convs[number], self.convs[number].kernel_size[0]
            pad = (3, 3) if number < 2 else ((height - 1) // 2, height // 2)
            made = self.norms[number](torch.relu(conv(functional.pad(x, (0, 0, *pad)))))
            parts.append(made.amax(3))
        front = torch.cat(parts, 1)  # (N, channels, time)
        layers = [front, self._middle(5, front)]
        for number in (6, 7):
            layers.append(self._middle(number, layers[-1]) + layers[-1])
        features = torch.cat(layers, 1)
        # As tf.concat of both pools along the last axis, flattened: maximum and mean of each channel side by side.
        pooled = torch.stack([features.amax(2), features.mean(2)], 2).flatten(1)
        x = self.dense(self.dropouts[0](self.flat_norm(pooled)))
        x = self.dropouts[1](self.dense_norm(torch.relu(x)))
        return torch.sigmoid(self.last(x))

    def _middle(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """A convolution over time whose kernel spans all channels; (N, channels, time) to the same."""
        given = functional.pad(x, (3, 3)).transpose(1, 2)[:, None]
        return self.norms[number](torch.relu(self.convs[number](given)))[..., 0]


class Vgg(nn.Module):
    """musicnn/models.py, vgg: Dropout 0.25 upstream of four of six BatchNorms, 0.5 upstream of the last layer."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.first = held.norm(0)
        self.convs = nn.ModuleList(held.conv_named(f"{number}CNN") for number in range(1, 6))
        self.norms = nn.ModuleList(held.norm(number) for number in range(1, 6))
        self.pools = nn.ModuleList(nn.MaxPool2d(*sizes) for sizes in [((4, 1), 2), (2, 2), (2, 2), (2, 2), (4, 4)])
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in (0.25, 0.25, 0.25, 0.25, 0.5))
        self.last = held.dense(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities of 50 tags, (N, 50), of log mel spectra (N, 187, 96)."""
        x = self.first(x[:, None])
        for number in range(4):
            x = self.dropouts[number](self._layer(number, x))
        flat = self._layer(4, x).permute(0, 2, 3, 1).flatten(1)
        return torch.sigmoid(self.last(self.dropouts[4](flat)))

    def _layer(self, number: int, x: torch.Tensor) -> torch.Tensor:
        made = torch.relu(self.convs[number](functional.pad(x, (1, 1, 1, 1))))
        answer: torch.Tensor = self.pools[number](self.norms[number](made))
        return answer


def tagger(name: str, place: Place) -> Case:
    """One of the four, on windows of three seconds of pieces in one style each."""
    wheel = place.wheel("musicnn", "0.1.0")
    held = Held(read_checkpoint(wheel / "musicnn" / name))
    network = (Musicnn if name.endswith("musicnn") else Vgg)(held).eval()
    calibration, tested = clips(place, 128, 1), clips(place, 300, 2)
    tags = _tags(name, wheel)
    told = np.array([bool(tags[style]) for style in tested["style"]])
    rows, test = calibration["mel"], tested["mel"][told]
    model, lost = both_files(network, rows[:4])
    given = input_name(model)
    parity = None
    if place.tensorflow is not None:
        original = original_answers(place.tensorflow, name, wheel, test[:32])
        parity = snr_db(original, only(file_outputs(model, {given: test[:32]})))
    return Case(
        model,
        {given: rows},
        {given: test},
        partial(_score, tags=tags, styles=tested["style"][told]),
        (Metric("style right, %"), Metric("pairs of tags in the right order, %")),
        lost=lost,
        parity_db=parity,
        parity_with="" if parity is None else "TensorFlow 2.15",
    )


def _tags(name: str, wheel: Path) -> list[list[int]]:
    """Of each style the numbers of its tags in the set of labels that a model has; none where it has none of them."""
    room: dict[str, list[str]] = {}
    exec((wheel / "musicnn" / "configuration.py").read_text(), room)
    labels = room["MTT_LABELS" if name.startswith("MTT") else "MSD_LABELS"]
    return [[labels.index(tag) for tag in style.tags if tag in labels] for style in STYLES]


def _score(answers: Outputs, tags: Sequence[Sequence[int]], styles: Array) -> tuple[Array, ...]:
    """Whether the tags of the style that was played are the likeliest, and how many outrank those of other styles."""
    probability = np.clip(only(answers).astype(np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(probability / (1 - probability))
    known = {tag for group in tags for tag in group}
    best = np.stack([logits[:, list(group)].mean(1) if group else np.full(len(logits), -np.inf) for group in tags], 1)
    order = np.empty(len(styles))
    for number, style in enumerate(styles):
        others = logits[number, sorted(known - set(tags[style]))]
        order[number] = 100.0 * (logits[number, list(tags[style])][:, None] > others).mean()
    return 100.0 * (best.argmax(1) == styles), order


def _entry(name: str, noise: str, reaches: tuple[int, int]) -> Network:
    return Network(
        f"musicnn {name}",
        "tags of music",
        "published",
        noise,
        reaches,
        f"musicnn/models.py {'vgg' if name.endswith('vgg') else 'backend'}",
        partial(tagger, name),
        64 if name.endswith("musicnn") else 32,
    )


_TAIL = ("Dropout 0.5 on both sides of the dense layer", (1, 11))
_BLOCKS = ("Dropout 0.25 after four of five blocks, 0.5 on the last features", (4, 6))
NETWORKS = (
    _entry("MTT_musicnn", *_TAIL),
    _entry("MSD_musicnn", *_TAIL),
    _entry("MTT_vgg", *_BLOCKS),
    _entry("MSD_vgg", *_BLOCKS),
)
