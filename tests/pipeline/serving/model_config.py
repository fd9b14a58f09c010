"""Triton's own reading of a configuration: the message ModelConfig that its client library carries."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
from google.protobuf import text_format


@cache
def _messages() -> Any:
    """The generated module. It is loaded by its path: the package around it wants grpcio, which nothing here does."""
    path = next(file for file in files("tritonclient") or () if file.match("tritonclient/grpc/model_config_pb2.py"))
    spec = spec_from_file_location("model_config_pb2", str(path.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_config(text: str) -> Any:
    """The configuration as Triton reads it; an unknown field or value is an error."""
    try:
        messages = _messages()
    except PackageNotFoundError:
        pytest.skip("tritonclient is not installed; run: pip install 'vsfix[test]'")
    return text_format.Parse(text, messages.ModelConfig())


def type_name(value: int) -> str:
    """The name of a type of Triton."""
    return str(_messages().DataType.Name(value))
