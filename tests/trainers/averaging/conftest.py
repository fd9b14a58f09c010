"""A trained module, and rows to repair it on."""

from __future__ import annotations

import copy

import pytest

from tests.trainers.averaging.small_modules import friedman, regressor, train


@pytest.fixture(scope="module")
def trained():
    return train(regressor())


@pytest.fixture
def module(trained):
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def rows():
    return friedman(96, 3)[0]
