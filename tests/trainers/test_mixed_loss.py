from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vsfix.trainers.augmentation import mixed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_the_loss_is_the_cross_entropy_with_mixed_distributions(share, smoothing):
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 1, 2, 2])
    own = F.one_hot(labels, 4).double()
    targets = (1 - smoothing) * (share * own + (1 - share) * own.flip(0)) + smoothing / 4
    truth = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, share, smoothing), truth, rtol=1e-12, atol=0)
