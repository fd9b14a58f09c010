"""The results of the GPU benchmark in one file, which the page of the guide is made of: see `render.py`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steps import Found, Step, missed

SCHEMA = 1


class Results:
    """What was found, kept after each step.

    Attributes:
        found: by step.
        environment: the machine, versions, and the command line.

    Args:
        path: the file; read where it is there.
        dry_run: whether what is found measures nothing.
    """

    def __init__(self, path: Path, *, dry_run: bool = False) -> None:
        self.path, self.dry_run = path, dry_run
        self.found: dict[Step, Found] = {}
        self.environment: dict[str, Any] = {}
        self.not_run: list[str] = []
        if path.exists():
            document = json.loads(path.read_text())
            if document["schema"] != SCHEMA or document["dry_run"] != dry_run:
                raise ValueError(f"{path}: is of another kind of run; name another folder")
            self.environment = document["environment"]
            self.found = {Step(**entry["step"]): entry["found"] for entry in document["steps"]}
            self.not_run = document["not_run"]

    def add(self, step: Step, found: Found) -> None:
        """Keeps a step."""
        self.found[step] = found
        self.save()

    def save(self) -> None:
        """Writes the file, whole."""
        document = {
            "schema": SCHEMA,
            "dry_run": self.dry_run,
            "environment": self.environment,
            "steps": [{"step": asdict(step), "found": found} for step, found in self.found.items()],
            "misses": self.misses,
            "not_run": self.not_run,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.rename(self.path)

    @property
    def misses(self) -> list[str]:
        """The targets that were missed."""
        return [miss for step, found in self.found.items() for miss in missed(step, found)]
