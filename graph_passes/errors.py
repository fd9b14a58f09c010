"""The tree of errors that vsfix raises.

    VsfixError                 exit code 2 unless a subclass says otherwise
    +-- InputError             2  a file, an option or a data set that can't be used as it is
    |   +-- ModelError         2  the model file: unreadable, invalid, or nothing in it that vsfix can work on
    |   +-- DataError          2  the data: empty, wrong shape, not finite
    |   |   +-- UncomparableError 2 outputs that can't be averaged over noise: not finite, constant, or decisions alone
    |   |   +-- OutOfMemoryError 2  more of it at once than the memory of the device holds
    |   +-- OutputExistsError  2  the output is there already, and nobody said that it may be replaced
    +-- CheckFailedError       1  a check ran and failed: the numbers, the accuracy, a refused repair
    +-- MissingComponentError  3  a library or a device that is not on this machine
    +-- BuildError             4  an engine could not be parsed or built, or must be built anew
    +-- StoppedError           130, 143  Ctrl-C or SIGTERM came; what was done is saved

Every message is one line: what, where, and what to do about it. Errors of the libraries below never reach the user.
"""

from __future__ import annotations

from collections.abc import Sequence

_EXTRAS = {
    "lightning_fabric": "train",
    "onnxruntime": "cpu",
    "onnxscript": "train",
    "sklearn": "train",
    "torch": "train",
}
SMALLER_BATCH = "give a smaller batch size"
_NO_MEMORY = ("out of memory", "can't allocate memory", "Failed to allocate memory", "bad_alloc")
_LOST = (
    *("no CUDA-capable device", "busy or unavailable", "invalid device ordinal", "invalid device context"),
    *("uncorrectable ECC", "uncorrectable NVLink", "GPU is lost", "CUDA error: unknown error", "CUDA failure 999"),
)


class VsfixError(Exception):
    """Root of all errors that vsfix raises on purpose; its text is one line, whatever a file has in its names."""

    exit_code = 2

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class InputError(VsfixError):
    """A file, an option or a data set that can't be used as it is."""


class ModelError(InputError):
    """A model file that is unreadable, invalid, or holds nothing that vsfix can work on."""


class DataError(InputError):
    """Data that is empty, of the wrong shape, or not finite."""


class UncomparableError(DataError):
    """Outputs that can't be averaged over noise: not finite, constant, or decisions alone."""


class OutOfMemoryError(DataError):
    """More samples at once than the memory of the device holds; a smaller batch may fit."""


class OutputExistsError(InputError):
    """The output exists and may not be replaced."""


class CheckFailedError(VsfixError):
    """A check ran and failed."""

    exit_code = 1


class MissingComponentError(VsfixError):
    """A library or device that is not on this machine."""

    exit_code = 3


class BuildError(VsfixError):
    """An engine could not be parsed or built, or must be built anew for this machine."""

    exit_code = 4


class StoppedError(VsfixError):
    """A signal came, and the work came to an orderly end.

    Its exit code is what a process that the signal ended has by custom: 128 and the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def first_line(error: BaseException) -> str:
    """The first line with text in it of an error's message, or its class where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def few_of(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are, for a message."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def device_fault(error: BaseException, where: str, cure: str) -> VsfixError | None:
    """The error to raise in the place of one that is the device's and not the model's; None for any other.

    None of CUDA, torch and ONNX Runtime has classes for all of these. Source: `cudaGetErrorString` of the CUDA runtime,
    and the messages of torch 2.13 and ONNX Runtime 1.32.

    Args:
        error: what a runtime raised.
        where: what ran where, as `torch (cuda)`.
        cure: what to do about too little memory.
    """
    text, said = str(error), first_line(error)[:160]
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return OutOfMemoryError(f"{where}: the memory does not suffice ({said}); {cure}")
    if any(words in text for words in _LOST):
        return MissingComponentError(
            f"{where}: the GPU does not answer any more ({said}); see nvidia-smi and the Xid lines of dmesg, and run "
            "the command again"
        )
    return None


def missing_package(error: ModuleNotFoundError) -> MissingComponentError | None:
    """The error to raise in the place of one that says that a package is not installed; None where it is vsfix's own.

    Args:
        error: what an import raised.
    """
    if not error.name or error.name.startswith("vsfix"):
        return None
    wanted = f"'vsfix[{_EXTRAS[error.name]}]'" if error.name in _EXTRAS else "vsfix"
    return MissingComponentError(f"{error.name} is not installed; run: pip install {wanted}")
