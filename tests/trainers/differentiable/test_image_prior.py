from __future__ import annotations

import pytest
import torch

from vsfix.trainers.differentiable.image_prior import ImagePrior, PixelRange, draw_dead_leaves, draw_start


def test_dead_leaves_have_the_power_spectrum_of_photographs() -> None:
    images = draw_dead_leaves(300, 2, (32, 32), torch.Generator().manual_seed(0))
    assert images.min() >= 0
    assert images.max() <= 1
    power = torch.fft.fft2(images).abs().square().mean((0, 1))
    slope = torch.log(power[0, 2] / power[0, 8]) / torch.log(torch.tensor(8 / 2))
    assert slope.item() == pytest.approx(2.0, abs=0.5)


@pytest.mark.parametrize("shape", [(200, 2, 64), (50, 2, 8, 8, 8), (4000, 2)])
def test_inputs_of_every_rank_start_with_variance_1(shape: tuple[int, ...]) -> None:
    images = ImagePrior(shape, None, torch.Generator().manual_seed(0)).images().detach()
    assert images.shape == shape
    assert images.var().item() == pytest.approx(1, rel=0.02)


def test_a_signal_starts_smooth() -> None:
    signals = draw_start((500, 1, 64), torch.Generator().manual_seed(0))
    power = torch.fft.fft(torch.logit(signals)).abs().square().mean((0, 1))
    assert (power[2] / power[8]).item() == pytest.approx(16, rel=0.2)


def test_a_pixel_range_holds_whatever_the_parameters() -> None:
    low, high = torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0])
    prior = ImagePrior((4, 2, 5, 5), PixelRange(low, high), torch.Generator().manual_seed(0))
    with torch.no_grad():
        prior.parameters[0].mul_(100)
    images = prior.images().detach()
    assert (images.amin((0, 2, 3)) >= low - 1e-6).all()
    assert (images.amax((0, 2, 3)) <= high + 1e-6).all()
