from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from vsfix.graph_passes.errors import InputError, MissingComponentError
from vsfix.pipeline.reproduction.ray_trials import RayCluster
from vsfix.pipeline.reproduction.trial import run_trial
from vsfix.pipeline.reproduction.trial_store import TrialStore

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; pip install 'vsfix[ray]'")


@pytest.fixture(autouse=True)
def ray_token(monkeypatch):
    """The environment that Ray finds is put back."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)


def kill_worker_of(store: TrialStore, trial) -> None:
    """Waits until a run has written its first checkpoint, and kills the processes that make runs for this test."""
    until = time.monotonic() + 120  # a run that fails at once leaves none
    while not (store.run_folder(trial) / "checkpoint.pt").exists():
        if time.monotonic() > until:
            return
        time.sleep(0.01)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_worker = b"run_trial" in (folder / "cmdline").read_bytes()
            if is_worker and os.getpid() in ancestors(parent):
                os.kill(int(folder.name), signal.SIGKILL)


def ancestors(process: int) -> list[int]:
    """A process and those above it."""
    found = []
    while process > 1:
        found.append(process)
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return found


@pytest.mark.long
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_lost_worker_costs_its_run_alone_and_the_run_goes_on_the_next_time(make_trial, tmp_path, capfd):
    store = TrialStore(tmp_path / "store")
    long, short = make_trial(0, epochs=400), make_trial(1)
    killer = threading.Thread(target=kill_worker_of, args=(store, long))
    killer.start()
    # Every core for each run, so that the second begins when the first is lost.
    lost, *others = RayCluster(cpus=os.cpu_count() or 1).run([long, short], store)
    killer.join()
    assert lost.trial == long
    assert lost.result is None
    assert "its worker was lost" in lost.failure
    assert [outcome.failure for outcome in others] == [""]
    alone = run_trial(make_trial(1), tmp_path / "alone", threads=os.cpu_count())
    assert others[0].result.accuracy == alone.accuracy
    assert others[0].result.shift == alone.shift
    assert capfd.readouterr().out == ""
    assert (store.run_folder(long) / "checkpoint.pt").exists()


def test_a_missing_ray_is_named(make_trial, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingComponentError, match=r"pip install 'vsfix\[ray\]'"):
        list(RayCluster().run([make_trial()], TrialStore(tmp_path)))


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_is_named_at_once(make_trial, monkeypatch, tmp_path):
    import ray

    started = time.monotonic()
    with pytest.raises(MissingComponentError, match=r"--ray 127\.0\.0\.1:1: can't connect \(.*refused\)"):
        list(RayCluster("127.0.0.1:1").run([make_trial()], TrialStore(tmp_path)))
    assert time.monotonic() - started < 5

    def refuse(**options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(MissingComponentError, match=r"--ray auto: can't connect \(nobody there\)"):
        list(RayCluster("auto").run([make_trial()], TrialStore(tmp_path)))


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_what_the_cluster_does_not_have_is_named_at_once(make_trial, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(MissingComponentError, match="a run is to have 1 GPUs, and the cluster has 0; lower --gpus"):
        list(RayCluster(gpus=1).run([make_trial()], TrialStore(tmp_path)))
    with pytest.raises(MissingComponentError, match="3 CPUs, and the cluster has 2"):
        list(RayCluster(cpus=3).run([make_trial()], TrialStore(tmp_path)))


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_ray_of_its_own_reports_to_nobody(make_trial, tmp_path, monkeypatch):
    import ray
    from ray._common.usage.usage_lib import usage_stats_enabled

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")  # so that what the command sets is taken back
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    reported = []
    monkeypatch.setattr(ray, "init", lambda **options: reported.append(usage_stats_enabled()))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    with pytest.raises(MissingComponentError, match="3 CPUs"):
        list(RayCluster(cpus=3).run([make_trial()], TrialStore(tmp_path)))
    assert reported == [False]


@pytest.mark.long
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_bad_input_in_a_worker_ends_the_grid_and_runaway_numbers_do_not(make_trial, tmp_path):
    store = TrialStore(tmp_path / "store")
    before = builtins.print, signal.getsignal(signal.SIGTERM)
    outcomes = RayCluster(cpus=os.cpu_count() or 1).run(
        [make_trial(learning_rate=1e30), make_trial(samples=2000)], store
    )
    assert "CheckFailedError" in next(outcomes).failure
    with pytest.raises(InputError, match="1297 images, but 2000 samples"):
        next(outcomes)
    assert (builtins.print, signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.long
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_worker_runs_nothing_that_lies_in_the_current_folder(make_trial, tmp_path, monkeypatch):
    for name in ("vsfix", "numpy", "torch", "sklearn"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} of the current folder is run')")
    monkeypatch.chdir(tmp_path)
    (outcome,) = RayCluster(cpus=os.cpu_count() or 1).run([make_trial()], TrialStore(tmp_path / "store"))
    assert outcome.failure == ""
