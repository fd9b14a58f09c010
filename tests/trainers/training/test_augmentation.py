from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.training.augmentation import Augmentation, Draw, augment, draw_augmentation, mixed_cross_entropy

IMAGES = torch.arange(1.0, 1 + 5 * 2 * 6 * 7).view(5, 2, 6, 7)


def drawn(**change) -> Draw:
    """No crop, no flip, the square in the middle, no mixing."""
    values = {
        "top": np.full(5, 2),
        "left": np.full(5, 2),
        "mirrored": np.zeros(5, bool),
        "centre": np.full((5, 2), 0.5),
        "share": 1.0,
    }
    return Draw(**(values | change))


def test_nothing_is_done_by_default():
    assert torch.equal(augment(IMAGES, Augmentation(), draw_augmentation(Augmentation(), 5, 0)), IMAGES)


def test_a_crop_is_the_window_of_the_padded_image():
    top, left = np.array([0, 1, 2, 3, 4]), np.array([4, 3, 2, 1, 0])
    found = augment(IMAGES, Augmentation(crop=2), drawn(top=top, left=left))
    padded = np.pad(IMAGES.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for index in range(5):
        window = padded[index, :, top[index] : top[index] + 6, left[index] : left[index] + 7]
        np.testing.assert_array_equal(found[index].numpy(), window)
    assert torch.equal(found[2], IMAGES[2])


def test_a_flip_swaps_left_and_right_of_the_images_that_were_drawn():
    mirrored = np.array([True, False, True, False, False])
    found = augment(IMAGES, Augmentation(flip=True), drawn(mirrored=mirrored)).numpy()
    for index, flipped in enumerate(mirrored):
        expected = IMAGES[index].numpy()
        np.testing.assert_array_equal(found[index], expected[:, :, ::-1] if flipped else expected)


@pytest.mark.parametrize(("centre", "rows", "columns"), [((0.5, 0.5), (2, 4), (2, 4)), ((0.0, 0.99), (0, 1), (5, 7))])
def test_a_square_is_cut_out_and_what_lies_outside_is_lost(centre, rows, columns):
    found = augment(IMAGES, Augmentation(cutout=2), drawn(centre=np.tile(centre, (5, 1))))
    expected = IMAGES.clone()
    expected[:, :, slice(*rows), slice(*columns)] = 0
    assert torch.equal(found, expected)


def test_mixup_mixes_each_image_with_its_partner_from_the_other_end():
    found = augment(IMAGES, Augmentation(mixup=0.5), drawn(share=0.75))
    torch.testing.assert_close(found[1], 0.75 * IMAGES[1] + 0.25 * IMAGES[3])
    torch.testing.assert_close(found[2], IMAGES[2])


def test_what_is_drawn_has_its_distribution():
    draw = draw_augmentation(Augmentation(crop=2, flip=True, cutout=3, mixup=1.0), 20_000, 0)
    for offsets in (draw.top, draw.left):
        assert set(offsets) == {0, 1, 2, 3, 4}
        np.testing.assert_allclose(np.bincount(offsets) / 20_000, 0.2, atol=0.015)
    assert abs(np.corrcoef(draw.top, draw.left)[0, 1]) < 0.03
    assert draw.mirrored.mean() == pytest.approx(0.5, abs=0.015)
    assert draw.centre.mean() == pytest.approx(0.5, abs=0.01)
    shares = [draw_augmentation(Augmentation(mixup=0.2), 1, seed).share for seed in range(2000)]
    assert np.var(shares) == pytest.approx(1 / (4 * 1.4), rel=0.1)  # Beta(a, a): 1 / (4 (2 a + 1))


def test_one_option_does_not_change_what_another_draws():
    alone, together = (
        draw_augmentation(Augmentation(crop=2, **more), 9, 4)
        for more in ({}, {"flip": True, "cutout": 2, "mixup": 0.3})
    )
    for name in ("top", "left", "mirrored", "centre"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


def test_the_parts_of_two_processes_are_those_of_the_joint_batch():
    augmentation = Augmentation(crop=2, flip=True, cutout=3)
    draw = draw_augmentation(augmentation, 5, 7)
    joint = augment(IMAGES, augmentation, draw)
    for rank in (0, 1):
        share = slice(rank, None, 2)
        assert torch.equal(augment(IMAGES[share], augmentation, draw.part(share)), joint[share])


@pytest.mark.parametrize(
    ("text", "augmentation"),
    [
        ("none", Augmentation()),
        ("crop:4,flip", Augmentation(crop=4, flip=True)),
        ("cutout:8,mixup:0.2", Augmentation(cutout=8, mixup=0.2)),
    ],
)
def test_a_text_says_what_is_done(text, augmentation):
    assert Augmentation.parse(text) == augmentation


@pytest.mark.parametrize(
    "text",
    ["", "crop", "flip:1", "crop:4,crop:4", "spin:3", "crop:x", "crop:-1", "mixup:nan", "cutout:1.5", "crop:4,none"],
)
def test_what_is_no_augmentation_is_refused(text):
    with pytest.raises(InputError):
        Augmentation.parse(text)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_the_loss_is_the_cross_entropy_with_mixed_distributions(share, smoothing):
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 1, 2, 2])
    own = F.one_hot(labels, 4).double()
    targets = (1 - smoothing) * (share * own + (1 - share) * own.flip(0)) + smoothing / 4
    truth = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, share, smoothing), truth, rtol=1e-12, atol=0)
