"""The runs of all experiments in one folder: what is finished is never run again.

FOLDER/trials/KEY/run/          the training run, which goes on where it was broken off
FOLDER/trials/KEY/result.json   what it came to; it appears when everything is measured
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.atomic_file import atomic_path

from .trial import Trial, TrialResult


@dataclass(frozen=True)
class TrialStore:
    """The results in a folder.

    Attributes:
        folder: made where it is missing.
    """

    folder: Path

    def run_folder(self, trial: Trial) -> Path:
        """Where a run keeps its files."""
        return self.folder / "trials" / trial.key / "run"

    def load(self, trial: Trial) -> TrialResult | None:
        """The result of a run; None where it is not finished, or not all of it was measured that is asked for now.

        Raises:
            DataError: the file is damaged.
        """
        path = self._result(trial)
        if not path.exists():
            return None
        try:
            result = TrialResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror})") from None
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: damaged ({error}); delete it, and the run is measured again") from None
        return result if set(trial.repairs) <= set(result.repairs or ()) else None

    def save(self, trial: Trial, result: TrialResult) -> None:
        """Stores the result of a run; repairs that were measured for another table stay.

        Raises:
            InputError: the file can't be written.
        """
        path = self._result(trial)
        known = self.load(replace(trial, repairs=()))
        if known is not None and known.repairs:
            result = replace(result, repairs={**known.repairs, **(result.repairs or {})})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: can't make the folder ({error.strerror})") from None
        with atomic_path(path, force=True) as temporary:
            temporary.write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")

    def _result(self, trial: Trial) -> Path:
        return self.folder / "trials" / trial.key / "result.json"
