from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from vsfix.graph_passes.errors import InputError, MissingComponentError, OutputExistsError
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network
from vsfix.trainers.training.checkpoint import Checkpoint, EpochMetrics, load_checkpoint
from vsfix.trainers.training.run_folder import RunFolder
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, train

CONFIG = TrainingConfig(
    data="digits",
    network=NetworkConfig(model="preresnet-8", in_channels=1, image_size=(8, 8), num_classes=10, noise=NoiseSites()),
)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        training=CONFIG,
        preprocessing=Preprocessing(1, (8, 8), (0.3,), (0.4,)),
        model=build_network(CONFIG.network).state_dict(),
        optimizer={},
        scheduler={},
        metrics=(EpochMetrics(1, 2.25, 0.5, 3.5, 0.05, 640.0), EpochMetrics(2, 0.1 + 0.2, 0.75, 3.25, 0.05, 640.0)),
    )


def test_a_new_folder_is_made_and_starts_fresh(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.open_for(CONFIG, force=False) is None
    assert folder.path.is_dir()


def test_the_files_say_what_the_checkpoint_says(tmp_path, checkpoint):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "config.json", "metrics.csv"]
    assert TrainingConfig.from_dict(json.loads(folder.config.read_text())) == CONFIG
    rows = list(csv.DictReader(folder.metrics.read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "train_loss", "test_accuracy", "seconds", "learning_rate", "images_per_second"]
    assert [float(row["train_loss"]) for row in rows] == [2.25, 0.1 + 0.2]


def test_the_same_configuration_goes_on_and_another_is_refused(tmp_path, checkpoint):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint)
    resumed = folder.open_for(CONFIG, force=False)
    assert resumed is not None
    assert resumed.epoch == 2
    with pytest.raises(InputError, match=r"seed was 0, is 1.*--force"):
        folder.open_for(replace(CONFIG, seed=1), force=False)
    assert folder.open_for(replace(CONFIG, seed=1), force=True) is None


@pytest.mark.parametrize("name", ["config.json", "metrics.csv"])
def test_a_stranger_s_file_is_not_replaced_without_force(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{name}.*--force"):
        RunFolder(tmp_path).open_for(CONFIG, force=False)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_an_input_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="can't make the folder"):
        RunFolder(tmp_path / "run").open_for(CONFIG, force=False)


def test_views_are_repaired_and_left_alone_when_right(tmp_path, checkpoint):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint)
    expected, inode = folder.metrics.read_text(), folder.config.stat().st_ino
    folder.metrics.unlink()
    folder.write_views(checkpoint)
    assert folder.metrics.read_text() == expected
    assert folder.config.stat().st_ino == inode


CONFIG_LOGGED = TrainingConfig("digits", NetworkConfig("mlp-1", 1, (8, 8), 10), epochs=2, samples=64, batch_size=32)


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
        train(CONFIG_LOGGED, tmp_path, TrainingOptions(tensorboard=True, log_shift=1, on_epoch=interrupt))
    train(CONFIG_LOGGED, tmp_path, TrainingOptions(tensorboard=True, log_shift=1))
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
        train(replace(CONFIG_LOGGED, epochs=1), tmp_path, TrainingOptions(tensorboard=True))
    assert not (tmp_path / "checkpoint.pt").exists()
