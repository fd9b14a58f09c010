from __future__ import annotations

import json


def test_inspect_writes_a_page_with_its_command_and_its_verdict(call, onnx_path, npz_path, tmp_path, monkeypatch):
    page = tmp_path / "my page.html"
    monkeypatch.setattr("sys.argv", ["/somewhere/vsfix", "inspect", str(onnx_path), "--html", str(page)])
    result = call("inspect", onnx_path, "--data", npz_path, "--html", page)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {page}"
    text = page.read_text()
    assert f"<code>vsfix inspect {onnx_path} --html &#39;{page}&#39;</code>" in text
    assert "<strong>WARN</strong> <span>" in text
    assert "Inspection of network.onnx" in text
    assert "measured on 40 samples" in text


def test_json_on_stdout_stays_alone_and_holds_the_route(call, onnx_path, tmp_path):
    result = call("inspect", onnx_path, "--html", tmp_path / "p.html", "--json", "-")
    document = json.loads(result.stdout)
    assert document["route"]["batch_norm"] in {row["name"] for row in document["rows"]}
    assert document["route"]["noise"] == "dropout:0.5"
    assert (tmp_path / "p.html").is_file()


def test_an_existing_page_and_the_model_are_safe(call, onnx_path, tmp_path):
    page = tmp_path / "p.html"
    page.write_text("precious")
    assert call("inspect", onnx_path, "--html", page).exit_code == 2
    assert page.read_text() == "precious"
    assert call("inspect", onnx_path, "--html", page, "--force").exit_code == 0
    before = onnx_path.read_bytes()
    assert call("inspect", onnx_path, "--html", onnx_path, "--force").exit_code == 2
    assert onnx_path.read_bytes() == before
    assert call("inspect", onnx_path, "--html", page, "--json", page, "--force").exit_code == 2
