from __future__ import annotations

import pytest
import torch
from torch import nn

from vsfix.trainers.training.evaluation import count_right


class Threshold(nn.Module):
    """Says class 1 where the only pixel is positive; Dropout would spoil it in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(1).eval()
        self.dropout = nn.Dropout(0.99)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixel = self.dropout(images).flatten(1)
        return torch.cat([torch.zeros_like(pixel), pixel], dim=1)


@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_right_answers_are_counted_and_modes_are_kept(batch_size):
    pixels = torch.tensor([1.0, -1.0, 2.0, 3.0, -2.0, 1.0, 1.0]).view(-1, 1, 1, 1)
    labels = torch.tensor([1, 0, 1, 0, 1, 1, 1])
    module = Threshold()
    batches = zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
    assert count_right(module, batches) == (5, 7)
    assert (module.training, module.dropout.training, module.frozen.training) == (True, True, False)
