from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from vsfix.graph_passes.errors import MissingComponentError
from vsfix.trainers.checkpoint import load_checkpoint
from vsfix.trainers.network import NetworkConfig
from vsfix.trainers.training_config import TrainingConfig
from vsfix.trainers.training_loop import TrainingOptions, train

CONFIG = TrainingConfig("digits", NetworkConfig("mlp-1", 1, (8, 8), 10), epochs=2, samples=64, batch_size=32)


@pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="tensorboard is not installed; pip install 'vsfix[tensorboard]'"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_epoch_is_logged_once_also_after_a_resumption(tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(_) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path, TrainingOptions(tensorboard=True, log_shift=1, on_epoch=interrupt))
    train(CONFIG, tmp_path, TrainingOptions(tensorboard=True, log_shift=1))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    metrics = load_checkpoint(tmp_path / "checkpoint.pt").metrics
    losses = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert losses == [(row.epoch, pytest.approx(row.train_loss, rel=1e-6)) for row in metrics]
    assert [event.step for event in events.Scalars("shift_ratio/layers.0.bn")] == [1, 2]


def test_a_missing_tensorboard_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingComponentError, match=r"pip install 'vsfix\[tensorboard\]'"):
        train(replace(CONFIG, epochs=1), tmp_path, TrainingOptions(tensorboard=True))
    assert not (tmp_path / "checkpoint.pt").exists()
