"""The images of a training run as tensors: chosen, preprocessed, and checked against the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from vsfix.graph_passes.errors import InputError

from .datasets import Dataset, load_dataset, standardization
from .network import NetworkConfig
from .preprocessing import Preprocessing
from .training_config import TrainingConfig


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training and test images, ready for the network.

    Attributes:
        inputs: training images, float32, shape (N, C, h, w).
        labels: their classes, int64, shape (N,).
        test_inputs: test images, float32, shape (M, C, h, w).
        test_labels: their classes, int64, shape (M,).
        preprocessing: what was done to the images.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor
    preprocessing: Preprocessing

    def to(self, device: torch.device) -> TrainingData:
        """The same data on another device."""
        names = ("inputs", "labels", "test_inputs", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def require_batches(self, batch_size: int, processes: int) -> None:
        """Checks that the images fill a batch, and that every process gets an equal part of one.

        Raises:
            InputError: they don't.
        """
        if batch_size > len(self.labels):
            raise InputError(
                f"training: a batch of {batch_size} images, but there are {len(self.labels)}; lower the batch size"
            )
        if batch_size % processes or batch_size < 2 * processes:
            raise InputError(
                f"training: a batch of {batch_size} images can't be shared by {processes} processes;"
                " take a multiple of their number, at least two images each"
            )


def load_training_data(config: TrainingConfig) -> TrainingData:
    """Loads, chooses and preprocesses the images of a run; mean and deviation are those of the chosen images.

    Raises:
        InputError: unknown data, fewer images than `config.samples`, or images that don't fit the network.
        DataError: a damaged file.
        MissingComponentError: the library that brings the data is not installed.
    """
    training = _choose(load_dataset(config.data, "train"), config)
    test = load_dataset(config.data, "test")
    for part in (training, test):
        _require_fit(part, config.network)
    mean, std = standardization(training)
    height, width, channels = training.images.shape[1:]
    preprocessing = Preprocessing(channels, (height, width), mean, std, training.class_names)
    return TrainingData(
        inputs=torch.from_numpy(preprocessing.apply(training.images)),
        labels=torch.from_numpy(training.labels),
        test_inputs=torch.from_numpy(preprocessing.apply(test.images)),
        test_labels=torch.from_numpy(test.labels),
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
    return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])


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
