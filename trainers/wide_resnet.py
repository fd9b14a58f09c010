"""Wide residual networks: pre-activation ResNets with fewer and wider basic blocks.

    network   conv3x3 to 16 channels, three stages of n blocks of 16k, 32k and 64k channels, BN, ReLU, mean, classifier

with k the widening factor. The depth is 6n+4: 2 convolutions in each of the 3n blocks, the first convolution, and the
1x1 convolutions of the shortcuts, which the authors count too, one in each stage (at k = 1 the first needs none).

Blocks are those of `preactivation`, and so are the sites of the noise: a, directly in front of the second BN; b, behind
that BN and its ReLU, in front of the second convolution, which is where the authors have their Dropout; last, in front
of the classifier.

Source: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from vsfix.graph_passes.errors import InputError

from .noise_sites import NO_NOISE, NoiseSites
from .preactivation import PreActivationNetwork, PreActivationShape

_FIRST_CHANNELS = 16


def wide_blocks_per_stage(depth: int) -> int:
    """The n of a depth of 6n+4.

    Raises:
        InputError: the depth does not fit.
    """
    count, rest = divmod(depth - 4, 6)
    if rest or count < 1:
        raise InputError(f"the depth must be 6n+4 with n of at least 1, as in 16, 28 or 40, not {depth}")
    return count


class WideResNet(PreActivationNetwork):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: 6n+4, n of at least 1.
        widen: the factor k, at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: what all channels are multiplied by, those of the first convolution too, which `widen` leaves alone.
        noise: what stands at which site, see the head of this module.

    Raises:
        InputError: the depth does not fit.
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
    ) -> None:
        count, first = wide_blocks_per_stage(depth), _FIRST_CHANNELS * width
        wide = first * widen
        super().__init__(
            PreActivationShape("basic", count, first, (wide, 2 * wide, 4 * wide)), in_channels, num_classes, noise
        )
