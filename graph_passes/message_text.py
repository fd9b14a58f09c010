"""The texts of a model, which protobuf's older syntax lets through whatever bytes they are made of."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


def unreadable_text(message: Message) -> str | None:
    """The first text in a message, or in those that it holds, that is not UTF-8; None where all are.

    The numbers of a tensor are not looked at: to ask for them copies them.

    Returns:
        Where it stands, as `NodeProto.name`, and its bytes.
    """
    left = [message]
    while left:
        part = left.pop()
        texts, messages = _fields(part.DESCRIPTOR)
        for name in texts:
            value = getattr(part, name)
            for text in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    return f"{part.DESCRIPTOR.name}.{name} {text[:100]!r}"
        for name in messages:
            value = getattr(part, name)
            if not isinstance(value, Message):
                left.extend(value)
            elif part.HasField(name):
                left.append(value)
    return None


@cache
def _fields(descriptor: Descriptor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the fields of a message that hold texts, and of those that hold messages."""
    texts = tuple(field.name for field in descriptor.fields if field.type == FieldDescriptor.TYPE_STRING)
    return texts, tuple(field.name for field in descriptor.fields if field.message_type is not None)
