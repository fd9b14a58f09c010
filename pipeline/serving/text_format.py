"""Protobuf's text format, as far as a configuration wants it: messages, texts, whole numbers, truth values, words.

The language: https://protobuf.dev/reference/protobuf/textformat-spec
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_INDENT = "  "


@dataclass(frozen=True)
class Word:
    """The name of a value of an enumeration, which stands without quotes."""

    text: str


Scalar = str | int | bool | Word
Message = Sequence[tuple[str, "Value"]]
Value = Scalar | Sequence[int] | Message


def text_format(message: Message) -> str:
    """A message as text, a field a line.

    Args:
        message: fields by name, in order. A name may come again (repeated fields and maps); a sequence of whole numbers
            is a repeated field in one line, any other sequence a message.
    """
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    for name, value in message:
        if isinstance(value, str | int | Word):
            yield f"{name}: {_scalar(value)}"
        elif all(isinstance(item, int) for item in value) and value:
            yield f"{name}: [{', '.join(str(item) for item in value)}]"
        else:
            yield f"{name} {{"
            yield from (_INDENT + line for line in _lines(value))  # type: ignore[arg-type]  # numbers are dealt with
            yield "}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    """One character within quotes; what can't be seen becomes an octal number."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character >= " " and character != "\x7f" else f"\\{ord(character):03o}"
