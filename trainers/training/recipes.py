"""The training recipes of the networks' own papers, by name, and a quick one.

    quick       cosine, 10 epochs: the default                                for trials and for small data
    preresnet   He et al. 2016, arXiv 1603.05027, appendix                    64,000 steps of 128 images of CIFAR
    wrn         Zagoruyko, Komodakis 2016, arXiv 1605.07146, section 3        CIFAR
    densenet    Huang et al. 2017, arXiv 1608.06993, section 4.2              CIFAR, with their mirroring and shifting
    resnext     Xie et al. 2017, arXiv 1611.05431, section 5.3                CIFAR
    resnet      Xie et al. 2017, section 5, for ResNet and ResNeXt            ImageNet, 256 images in a step
    senet       Hu et al. 2018, arXiv 1709.01507, section 6.1                 ImageNet, 1,024 images in a step

PreResNet's authors hold the rate at 0.01 for the first 400 steps; here it rises in a line. Crops pad with the mean
colour, where wide ResNets' authors mirror the border. What was said in steps stands as shares of the run. The ImageNet
crop (8 to 100 % of the area) is drawn where images are decoded, with the flip here. SENet's authors rotate and jitter
too, and leave the weight decay unsaid: it is ResNet's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vsfix.graph_passes.errors import InputError

from .augmentation import Augmentation
from .training_config import Schedule

_SMALL_IMAGES = Augmentation(crop=4, flip=True)
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    "preresnet": {
        "epochs": 164,
        "schedule": Schedule("step", warmup=400 / 64000, milestones=(0.5, 0.75)),
        "nesterov": False,
        "weight_decay": 1e-4,
        "augmentation": _SMALL_IMAGES,
    },
    "wrn": {
        "epochs": 200,
        "schedule": Schedule("step", warmup=0, milestones=(0.3, 0.6, 0.8), decay=0.2),
        "augmentation": _SMALL_IMAGES,
    },
    "densenet": {
        "epochs": 300,
        "batch_size": 64,
        "schedule": Schedule("step", warmup=0, milestones=(0.5, 0.75)),
        "weight_decay": 1e-4,
        "augmentation": _SMALL_IMAGES,
    },
    "resnext": {
        "epochs": 300,
        "schedule": Schedule("step", warmup=0, milestones=(0.5, 0.75)),
        "augmentation": _SMALL_IMAGES,
    },
    "resnet": {
        "epochs": 90,
        "batch_size": 256,
        "schedule": Schedule("step", warmup=0, milestones=(1 / 3, 2 / 3)),
        "weight_decay": 1e-4,
        "augmentation": Augmentation(flip=True),
    },
    "senet": {
        "epochs": 100,
        "batch_size": 1024,
        "learning_rate": 0.6,
        "schedule": Schedule("step", warmup=0, milestones=(0.3, 0.6, 0.9)),
        "nesterov": False,
        "weight_decay": 1e-4,
        "augmentation": Augmentation(flip=True),
    },
}


def find_recipe(name: str) -> Mapping[str, Any]:
    """The fields of `TrainingConfig` that a recipe sets; all others have their defaults.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"recipe '{name}': must be one of {', '.join(RECIPES)}")
    return RECIPES[name]
