"""Each option of the command line is a parameter of one call in Python, or stands in a list here."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence

import pytest

import vsfix

# Where results go, and what a terminal is asked: no parameter of a function.
OF_THE_TERMINAL = {
    "inspect": {"html", "json_path", "force"},
    "optimize": {"output", "statistics", "html", "dry_run", "json_path", "force"},
    "export": {"output", "json_path", "force"},
    "verify": {"json_path", "force"},
    "benchmark": {"html", "predictions", "json_path", "force"},
    "build": {"output", "json_path", "force"},
}
RENAMED = {
    "verify": {
        "backends": "backend",
        "min_snr": "tolerance",
        "min_agreement": "tolerance",
        "max_accuracy_loss": "tolerance",
    },
    "build": {"target": "targets"},
}
# What only Python can give: objects.
OF_PYTHON = {"export": {"example_inputs", "dynamic_shapes"}, "build": {"progress"}}


def options(name: str) -> dict[str, object]:
    """The defaults of a command by the parameter that each option is."""
    command = importlib.import_module(f"vsfix.pipeline.cli.commands.{name}").command
    renamed = RENAMED.get(name, {})
    return {
        renamed.get(option.name, option.name): None if option.multiple_is_given else option.default
        for option in map(Option, command.params)
        if option.name not in {*OF_THE_TERMINAL[name], "verbose"}
    }


class Option:
    """The text of click on one."""

    def __init__(self, parameter) -> None:
        self.name = parameter.name
        self.multiple_is_given = getattr(parameter, "multiple", False) or parameter.nargs == -1
        given = parameter.to_info_dict().get("default")
        self.default = None if parameter.required or given == () else given


@pytest.mark.parametrize("name", OF_THE_TERMINAL)
def test_the_options_are_the_parameters(name):
    parameters = inspect.signature(getattr(vsfix, name)).parameters
    assert set(options(name)) == set(parameters) - OF_PYTHON.get(name, set())


@pytest.mark.parametrize("name", OF_THE_TERMINAL)
def test_both_have_the_same_defaults(name):
    parameters = inspect.signature(getattr(vsfix, name)).parameters
    for option, default in options(name).items():
        found = parameters[option].default
        if (default is not None and not isinstance(default, Sequence | bool)) or isinstance(default, str | bool):
            assert found == default, f"{name}: {option}"


@pytest.mark.parametrize("name", OF_THE_TERMINAL)
def test_the_docstring_names_every_parameter(name):
    function = getattr(vsfix, name)
    text = inspect.getdoc(function)
    assert [name for name in inspect.signature(function).parameters if f"\n    {name}: " not in text] == []
    assert "\nReturns:" in text
    assert "\nRaises:" in text
