"""Batches of images that are decoded in worker processes and preprocessed on the device.

A worker decodes whole batches, each from the rows that it is told, with crops drawn from the seed, the epoch and the
row: the batches are the same however many workers there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vsfix.graph_passes.errors import VsfixError

from .images import Images, random_crop
from .preprocessing import Preprocessing
from .random_streams import Stream, stream_seed


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """A source of batches, see `training_data.ImageSource`.

    Attributes:
        images: what is decoded.
        preprocessing: what is done to them on the device.
        device: where the batches go.
        seed: of the run.
        workers: processes; 0 decodes in this one.
    """

    images: Images
    preprocessing: Preprocessing
    device: torch.device
    seed: int
    workers: int

    def batches(self, rows: Sequence[torch.Tensor], epoch: int) -> Iterator[torch.Tensor]:
        """Yields preprocessed images, float32, shape (N, C, h, w); in epoch 0 they are not cut out at random."""
        with warnings.catch_warnings():
            # More workers than cores are what was asked for.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader: DataLoader[torch.Tensor | VsfixError] = DataLoader(
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


class _Batches(Dataset["torch.Tensor | VsfixError"]):
    """The batches by their number: uint8, shape (N, h, w, C); or the error that came in the place of one.

    An error that a worker raised would arrive with the worker's traceback as its message.
    """

    def __init__(self, images: Images, rows: Sequence[torch.Tensor], epoch: int, seed: int) -> None:
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
        return random_crop(self.images, row, generator)
