"""The images of a training run as tensors: chosen, preprocessed, and checked against the network.

Image files are decoded in worker processes. A worker decodes whole batches, each from the rows that it is told, with
crops drawn from the seed, the epoch and the row: the batches are the same however many workers there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils import data as torch_data

from vsfix.graph_passes.errors import InputError, VsfixError
from vsfix.graph_passes.progress import stage
from vsfix.trainers.data.datasets import Dataset, load_dataset, standardization
from vsfix.trainers.data.images import CroppedImages, Images
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.networks.network import NetworkConfig

from .random_streams import Stream, stream_seed
from .training_config import TrainingConfig


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """A source of batches, see `ImageSource`.

    Attributes:
        images: what is decoded.
        preprocessing: what is done to them on the device.
        device: where the batches go.
        seed: of the run.
        workers: processes; 0 decodes in this one.
    """

    images: CroppedImages
    preprocessing: Preprocessing
    device: torch.device
    seed: int
    workers: int

    def batches(self, rows: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yields preprocessed images, float32, shape (N, C, h, w); in epoch 0 they are not cut out at random."""
        with warnings.catch_warnings():
            # More workers than cores are what was asked for.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader: torch_data.DataLoader[torch.Tensor | VsfixError] = torch_data.DataLoader(
                _Batches(self.images, rows, epoch, self.seed),
                batch_size=None,
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                # Its own generator: the loader would draw from the one that the noise draws from.
                generator=torch.Generator(),
            )
            batches = iter(loader)
        mean = torch.tensor(self.preprocessing.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=self.device).view(1, -1, 1, 1)
        for images in batches:
            if isinstance(images, VsfixError):
                raise images
            moved = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # (N, C, h, w)
            yield (moved.float() / 255 - mean) / std


class _Batches(torch_data.Dataset["torch.Tensor | VsfixError"]):
    """The batches by their number: uint8, shape (N, h, w, C); or the error that came instead of one.

    An error that a worker raised would arrive with the worker's traceback as its message.
    """

    def __init__(self, images: CroppedImages, rows: Sequence[torch.Tensor], epoch: int, seed: int) -> None:
        self.images, self.rows, self.epoch, self.seed = images, rows, epoch, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor | VsfixError:
        rows = self.rows[index].numpy()
        try:
            if self.epoch == 0:
                return torch.from_numpy(self.images[rows])
            return torch.from_numpy(np.stack([self._cropped(int(row)) for row in rows]))
        except VsfixError as error:
            return error

    def _cropped(self, row: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        generator = np.random.default_rng(stream_seed(self.seed, Stream.DECODING, self.epoch, row))
        return self.images.random_crop(row, generator)


class ImageSource(Protocol):
    """A source of the batches of one part of the data."""

    def batches(self, rows: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yields preprocessed images, float32, shape (N, C, h, w), on the device, one batch for each entry.

        Args:
            rows: which images, int64, shape (N,).
            epoch: decides what is drawn in decoding, where something is.
        """
        ...


@dataclass(frozen=True, eq=False)
class TensorImages:
    """All images, preprocessed, in one tensor on the device: a batch is an index into it.

    Attributes:
        inputs: float32, shape (N, C, h, w).
    """

    inputs: torch.Tensor

    def batches(self, rows: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yields the images of these rows; `epoch` changes nothing."""
        return (self.inputs[batch.to(self.inputs.device)] for batch in rows)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training and test images, ready for the network.

    Attributes:
        images: to train with.
        labels: their classes, int64, shape (N,), on the device.
        test_images: to evaluate with.
        test_labels: their classes, int64, shape (M,), on the device.
        preprocessing: what is done to the images.
    """

    images: ImageSource
    labels: torch.Tensor
    test_images: ImageSource
    test_labels: torch.Tensor
    preprocessing: Preprocessing

    def require_batches(self, batch_size: int, parts: int) -> None:
        """Checks that the images fill a batch, and that every process gets an equal part of one.

        Args:
            batch_size: images of a step.
            parts: processes, times the parts in which each takes its share.

        Raises:
            InputError: they don't.
        """
        if batch_size > len(self.labels):
            raise InputError(
                f"training: a batch of {batch_size} images, but there are {len(self.labels)}; lower the batch size"
            )
        if batch_size % parts or batch_size < 2 * parts:
            raise InputError(
                f"training: a batch of {batch_size} images can't be taken in {parts} equal parts (processes, times"
                " accumulate); take a multiple of their number, at least two images each"
            )


@stage("reading the data")
def load_training_data(config: TrainingConfig, device: torch.device, *, workers: int = 0) -> TrainingData:
    """Loads, chooses and preprocesses the images of a run; mean and deviation are those of the chosen images.

    Args:
        config: the run.
        device: where the network is trained.
        workers: processes that decode image files; 0 decodes in this one.

    Raises:
        InputError: unknown data, fewer images than `config.samples`, or images that don't fit the network.
        DataError: a damaged file.
        MissingComponentError: the library that brings the data is not installed.
    """
    training = _choose(load_dataset(config.data, "train", size=config.network.image_size), config)
    test = load_dataset(config.data, "test", size=config.network.image_size)
    for part in (training, test):
        _require_fit(part, config.network)
    mean, std = standardization(training)
    height, width, channels = training.images.shape[1:]
    preprocessing = Preprocessing(channels, (height, width), mean, std, training.class_names)

    def source(images: Images) -> ImageSource:
        if isinstance(images, np.ndarray):
            return TensorImages(torch.from_numpy(preprocessing.apply(images)).to(device))
        return DecodedImages(images, preprocessing, device, config.seed, workers)

    return TrainingData(
        images=source(training.images),
        labels=torch.from_numpy(training.labels).to(device),
        test_images=source(test.images),
        test_labels=torch.from_numpy(test.labels).to(device),
        preprocessing=preprocessing,
    )


def _choose(dataset: Dataset, config: TrainingConfig) -> Dataset:
    """The first `samples` images after a shuffle that the seed decides."""
    if config.samples is None:
        return dataset
    if config.samples > len(dataset.labels):
        raise InputError(
            f"{dataset.name}: {len(dataset.labels)} images, but {config.samples} samples were asked for; ask for fewer"
        )
    rows = np.random.default_rng(config.seed).permutation(len(dataset.labels))[: config.samples]
    images = dataset.images[rows] if isinstance(dataset.images, np.ndarray) else dataset.images.choose(rows)
    return replace(dataset, images=images, labels=dataset.labels[rows])


def _require_fit(dataset: Dataset, network: NetworkConfig) -> None:
    """The network's input and output must be those of the data."""
    height, width, channels = dataset.images.shape[1:]
    has = (channels, height, width, len(dataset.class_names))
    takes = (network.in_channels, *network.image_size, network.num_classes)
    if has != takes:
        raise InputError(
            f"{dataset.name}: {_describe(has)}, but the network takes {_describe(takes)};"
            " make the network for this data"
        )


def _describe(shape: tuple[int, ...]) -> str:
    channels, height, width, classes = shape
    return f"{channels} channels of {height}x{width} in {classes} classes"
