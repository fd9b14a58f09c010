"""The comparisons with peers at their smallest; what a peer does is looked at where it is installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from vsfix.pipeline.cli.main import vsfix

from .conftest import batch_norm_weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "polygraphy")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def passes(script):
    return script("pass_peers")


@pytest.mark.long
def test_the_passes_are_timed_and_their_results_compared(passes, tmp_path, capsys):
    out = tmp_path / "found.json"
    line = ["--networks", "synthetic-40", "--sizes", "20", "40", "--rounds", "1", "--out", str(out)]
    code = passes.main(line)
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    model = found["models"][0]
    assert model["nodes"] == 40
    for tool in ("vsfix", "vsfix, compared"):
        assert model["tools"][tool]["nodes"] == 24  # of five in a block, Dropout and BatchNorm are gone
        assert model["tools"][tool]["difference"] < 1e-6 * model["tools"][tool]["largest"]
    assert [row["nodes"] for row in found["growth"]] == [20, 40]
    assert code == ("MISS" in said)
    for peer in PEERS[:3]:
        assert (f"SKIP {peer}: not installed, pip install {peer}" in said) == (find_spec(peer) is None)


@pytest.mark.parametrize("peer", PEERS[:4])
def test_a_peer_keeps_the_output_of_a_small_chain(passes, peer):
    if find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    row = passes.compare("synthetic-20", passes.chain(20, residual=True), [peer], passes.parse(["--rounds", "1"]))
    assert row["tools"][peer]["difference"] < 1e-6 * row["tools"][peer]["largest"]


def test_a_tool_that_spoils_or_breaks_a_model_is_shown(passes, monkeypatch):
    def spoil(model: onnx.ModelProto) -> onnx.ModelProto:
        kernel = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv.weight"))
        kernel.raw_data = (np.frombuffer(kernel.raw_data, np.float32) + 0.01).tobytes()
        return model

    def cut(model: onnx.ModelProto) -> onnx.ModelProto:
        del model.graph.node[0]
        return model

    def refuse(model: onnx.ModelProto) -> onnx.ModelProto:
        raise ValueError("not this one")

    tools = {"vsfix": ("vsfix", spoil), "cut": ("vsfix", cut), "refuse": ("vsfix", refuse)}
    monkeypatch.setattr(passes, "TOOLS", tools)
    row = passes.compare("synthetic-20", passes.chain(20, residual=True), list(tools), passes.parse(["--rounds", "1"]))
    assert row["tools"]["vsfix"]["difference"] > 1e-3
    said = passes.report({"models": [row], "growth": [], "skipped": []})
    assert "BROKEN cut, synthetic-20: " in said
    assert "FAIL refuse, synthetic-20: not this one" in said
    assert {"BROKEN", "FAIL"} <= {cell.strip() for cell in said.split("|")}
    row["tools"]["vsfix"] = row["tools"]["cut"]
    assert passes.missed({"models": [row], "growth": []}) == ["vsfix breaks synthetic-20"]


def test_what_is_left_of_a_graph_is_counted_in_its_bodies_too(script):
    module = script("pass_counts")
    row = module.compare("a body", module.chain("a body"), ["vsfix"])
    assert row["given"] == {"batch norms": 0, "constants": 2, "shape operators": 2, "nodes": 6}
    ours = row["tools"]["vsfix"]
    assert {key: ours[key] for key in row["given"]} == {
        "batch norms": 0,
        "constants": 0,
        "shape operators": 1,  # the condition of the loop, handed on
        "nodes": 3,
    }
    assert module.missed([row]) == []
    better = ours | {"shape operators": 0}
    assert module.missed([row | {"tools": {"vsfix": ours, "other": better}}]) == ["a body: 1 shape operators, best 0"]
    wrong = better | {"difference": 0.1}
    assert module.missed([row | {"tools": {"vsfix": ours, "other": wrong}}]) == []
    assert module.missed([row | {"tools": {"vsfix": wrong}}]) == ["a body: vsfix gives other outputs"]


def test_every_chain_of_constants_is_computed(script, tmp_path, capsys):
    module = script("pass_counts")
    out = tmp_path / "found.json"
    code = module.main(["--architectures", "--out", str(out)])
    assert code == ("MISS" in capsys.readouterr().out)
    rows = {row["graph"]: row["tools"]["vsfix"] for row in json.loads(out.read_text())["graphs"]}
    assert set(rows) == set(module.CHAINS)
    assert all(row["batch norms"] == row["constants"] == 0 for row in rows.values())


def test_the_power_law_of_the_growth_is_found_again_and_a_long_run_left_out(passes):
    rows = [{"nodes": n, "seconds": {"vsfix": 2e-4 * n, "onnxslim": 1e-6 * n**2}} for n in (100, 300, 1000)]
    assert passes.power_law(rows, "vsfix")[0] == pytest.approx(1)
    assert passes.power_law(rows, "onnxslim") == pytest.approx((2, 1e-6))
    options = passes.parse(["--rounds", "1", "--limit", "1e-5"])
    assert passes.grow(40, ["vsfix"], rows, options)["runs"] == {}
    assert passes.missed({"models": [], "growth": rows}) == []
    slow = [row | {"seconds": {"vsfix": row["seconds"]["onnxslim"] * 2}} for row in rows]
    assert len(passes.missed({"models": [], "growth": slow})) == 2  # over a second for 1,000 nodes, and not linear


def test_the_verdicts_of_verify_stand_in_the_table(script, passes, monkeypatch, tmp_path, capsys):
    peers = script("verify_peers")
    monkeypatch.setattr(peers, "TOOLS", ("vsfix verify --no-layers",))
    monkeypatch.setattr(peers, "IMAGE", (4, 4, 4))
    monkeypatch.setattr(
        peers, "export_random_network", lambda _, path: onnx.save(passes.chain(20, residual=True), path)
    )
    peers.main(["--samples", "8", "--repeat", "1", "--out", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["case"], row["code"]) for row in rows] == [
        ("the same", 0),
        ("folded", 0),
        ("wrong by 0.01", 1),
        ("fp16", 0),
    ]
    assert "SKIP polygraphy" in capsys.readouterr().out or find_spec("polygraphy")


def test_the_report_of_polygraphy_is_read(script):
    peers = script("verify_peers")
    text = "[I]   Minimum Required Tolerance: elemwise error | [abs=0.00046] OR [rel=0.14] (requirements may be lower)"
    said = peers.of_polygraphy({"code": 1, "text": text})
    assert said == "FAILED: needs a tolerance of 0.00046 absolute or 0.14 relative"
    assert peers.of_polygraphy({"code": 2, "text": "no such file"}) == "FAILED: no such file"


@pytest.fixture
def small_model(passes, tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(passes.chain(4), path)
    return path


def test_the_start_of_each_command_is_timed(script, small_model, tmp_path, capsys):
    code = script("start_time").main(
        ["--repeat", "1", "--model", str(small_model), "--out", str(tmp_path / "found.json")]
    )
    said = capsys.readouterr().out
    rows = {row["command"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert {"python -c pass", "vsfix --help", "vsfix inspect MODEL.onnx"} <= rows.keys()
    assert 0 < rows["python -c pass"]["peak"] < rows["vsfix --help"]["peak"] < rows["vsfix inspect MODEL.onnx"]["peak"]
    assert code == ("MISS" in said)
    assert ("SKIP polygraphy: not installed" in said) == (find_spec("polygraphy") is None)


def test_the_peak_is_that_of_the_process_and_not_of_what_starts_it(script):
    held = np.ones(10**8, np.uint8)  # 100 MB that this process has
    found = script("start_time").launch(["python", "-c", "pass"])
    assert found["peak"] < held.nbytes / 2
    large = script("start_time").launch(["python", "-c", "x = b'1' * 10**8"])
    assert large["peak"] > held.nbytes
    with pytest.raises(SystemExit, match="exit code 3"):
        script("start_time").launch(["python", "-c", "raise SystemExit(3)"])


def test_both_training_loops_do_the_same_first_step(script, tmp_path, capsys):
    steps = script("training_step")
    line = "--models mlp-1 --batch 8 --blocks 3 --block 0.01 --images 64 --out".split()
    code = steps.main([*line, str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["models"]["mlp-1"]
    assert found["first_step"] == 0
    assert set(found["milliseconds"]) == {"vsfix", "torch eager", "vsfix, Uout"}
    assert found["images_per_second"]["vsfix"] == pytest.approx(8000 / found["milliseconds"]["vsfix"])
    one, median, other = (found["uout_over_dropout"][place] for place in (1, 0, 2))
    assert one <= median <= other
    assert code == ("MISS" in capsys.readouterr().out)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.bias[0] += 0.25
    assert steps.largest_difference(one, other) == pytest.approx(0.25)
    slow = {"over_eager": [1.2, 1.1, 1.3], "uout_over_dropout": [1.2, 1.01, 1.3], "first_step": 1e-9}
    assert len(steps.missed({"models": {"mlp-1": slow}})) == 3
    unsure = {"over_eager": [1.2, 0.99, 1.3], "uout_over_dropout": [0.7, 0.6, 0.8], "first_step": 0}
    assert steps.missed({"models": {"mlp-1": unsure}}) == []


def test_without_its_peers_a_script_says_how_to_get_them():
    for name in ("pass_peers", "pass_counts", "verify_peers", "start_time"):
        text = (BENCHMARKS / f"{name}.py").read_text()
        assert "\n    pip install " in text.split('"""')[1]
    done = subprocess.run([sys.executable, BENCHMARKS / "start_time.py", "--help"], capture_output=True, text=True)
    assert "pip install polygraphy onnxslim" in done.stdout


def test_a_size_that_was_left_out_does_not_let_a_longer_one_run(passes):
    rows = [{"nodes": nodes, "seconds": {"slow": nodes**2 / 1e6}} for nodes in (1000, 3000)]
    skipped = {"nodes": 10_000, "seconds": {}}
    assert passes.promised(rows, "slow", 10_000) == pytest.approx(100)
    assert passes.promised([*rows, skipped], "slow", 20_000) == pytest.approx(400)


def test_the_profile_of_exact_adds_up_to_the_clock(script, parse, tmp_path, capsys, monkeypatch):
    module = script("exact_profile")
    rng = np.random.default_rng(0)
    body = """(float[N, 8, 16, 16] x) => (float[N, 8, 16, 16] y) {
        c = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
        n = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        y = Relu (n)
    }"""
    weights = {"w": rng.normal(size=(8, 8, 3, 3)).astype(np.float32)} | batch_norm_weights("bn", 8, rng)
    onnx.save(parse(body, weights), tmp_path / "net.onnx")
    np.savez(tmp_path / "images.npz", x=rng.normal(size=(64, 8, 16, 16)).astype(np.float32))
    profiles = []
    printed = module.table
    monkeypatch.setattr(module, "table", lambda found, images: profiles.append(found) or printed(found, images))
    assert module.main([str(tmp_path / "net.onnx"), "--data", str(tmp_path / "images.npz"), "--images", "64"]) == 0
    for seconds in profiles[0].values():
        assert sum(seconds[row] for row in module.ROWS[:-2]) == pytest.approx(seconds["by the clock"])
        assert seconds["convolutions"] > 0
    assert profiles[0]["forward"]["moments"] == 0 < profiles[0]["exact"]["moments"]
    assert "| by the clock |" in capsys.readouterr().out


def test_the_formula_of_dipoorlet_is_a_moving_average_of_single_images(script):
    peers = script("repair_peers")
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.ReLU(), torch.nn.BatchNorm2d(2))
    x = np.random.default_rng(0).normal(1, 2, (5, 2, 3, 4)).astype(np.float32)
    peers.moving_averages(network, list(torch.from_numpy(x).split(2)))
    for layer in (network[0], network[2]):
        mean, variance = np.zeros(2), np.ones(2)
        for image in x:
            mean, variance = 0.9 * mean + 0.1 * image.mean((1, 2)), 0.9 * variance + 0.1 * image.std((1, 2))
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(layer.running_var, variance, rtol=1e-5)
        scale = np.sqrt(variance + layer.eps)[:, None, None]
        x = np.maximum((x - mean[:, None, None]) / scale, 0)  # what the next one sees


@pytest.mark.long
def test_the_repairs_of_pytorch_are_measured_drawn_and_not_taken_again(script, tmp_path, capsys):
    peers = script("repair_peers")
    run, exported = tmp_path / "run", tmp_path / "net.onnx"
    train = ["train", "--model", "mlp-2", "--data", "digits", "--noise", "dropout:0.5", "--epochs", "1", "-o", str(run)]
    for command in (train, ["export", str(run), "-o", str(exported)]):
        assert CliRunner().invoke(vsfix, command).exit_code == 0
    out, figure = tmp_path / "found.json", tmp_path / "peers.svg"
    line = [str(run), str(exported), "--images", "32", "--seeds", "1", "--test-images", "100", "--out", str(out)]
    capsys.readouterr()
    assert peers.main([*line, "--figure", str(figure)]) == 0
    printed, found = capsys.readouterr().out, out.read_text()
    measured = {row["method"] for row in json.loads(found)["measurements"]}
    assert measured == {*peers.METHODS, peers.AS_TRAINED, peers.AVERAGED} - (
        {peers.FVCORE} if find_spec("fvcore") is None else set()
    )
    assert all(f"| {method} |" in printed for method in peers.METHODS)
    assert "dropout:0.5" in printed.splitlines()[0]
    assert all(method in figure.read_text() for method in measured - {peers.AVERAGED})
    assert peers.main(line) == 0
    assert out.read_text() == found


def test_the_growth_of_a_repair_is_a_power_of_the_size_and_its_chains_are_of_that_size(script, capsys):
    growth = script("repair_growth")
    assert growth.exponent([100, 1000], [0.5, 5]) == pytest.approx(1)
    assert growth.exponent([100, 1000], [0.5, 50]) == pytest.approx(2)
    for batch_norms, nodes in ((8, 200), (12, 0)):
        operators = [node.op_type for node in growth.chain(batch_norms, nodes).graph.node]
        assert operators.count("BatchNormalization") == batch_norms
        assert abs(len(operators) - max(nodes, 4 * batch_norms)) <= batch_norms
    growth.main(["--only", "samples", "--shrink", "1000", "--repeat", "1"])
    assert "| 100 |" in capsys.readouterr().out
