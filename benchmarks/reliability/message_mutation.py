"""Changes protobuf messages at random, knowing their structure and nothing of their meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, -3e38, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", ".", "..", "../loot", "/etc/passwd", "a" * 5000, "\N{SNOWMAN}", "a\nb", "-o", "vsfix.noise", "%s%n")
_UNSIGNED = (Field.CPPTYPE_UINT32, Field.CPPTYPE_UINT64)
_NARROW = (Field.CPPTYPE_INT32, Field.CPPTYPE_UINT32)


def messages_of(message: Message) -> Iterator[Message]:
    """A message and all messages in it."""
    pending = [message]
    while pending:
        found = pending.pop()
        yield found
        for field, value in found.ListFields():
            if field.message_type is not None:
                pending.extend(value if field.is_repeated else [value])


def mutate_message(root: Message, rng: np.random.Generator) -> str:
    """Changes one field of one message in a tree; says which."""
    messages = list(messages_of(root))
    message = messages[rng.integers(len(messages))]
    fields = [field for field, _ in message.ListFields()] if rng.random() < 0.8 else []
    fields = fields or list(message.DESCRIPTOR.fields)
    field = fields[rng.integers(len(fields))]
    if field.is_repeated:
        _mutate_list(message, field, messages, rng)
    elif field.message_type is not None:
        _mutate_child(message, field, messages, rng)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, mutate_value(field, getattr(message, field.name), messages, rng))
    return f"{message.DESCRIPTOR.name}.{field.name}"


def mutate_value(field: Field, value: Any, messages: list[Message], rng: np.random.Generator) -> Any:
    """Another value for a field that is no message."""
    kind = field.cpp_type
    if kind == Field.CPPTYPE_STRING:
        if field.type == Field.TYPE_BYTES:
            return mutate_bytes(value, rng)
        return _another_text(value, messages, rng)
    if kind in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
        return _pick(FLOATS, rng)
    if kind == Field.CPPTYPE_BOOL:
        return not value
    if kind == Field.CPPTYPE_ENUM:
        return int(rng.choice([number.number for number in field.enum_type.values]))
    number = int(value) + int(rng.integers(-3, 4)) if rng.random() < 0.5 else int(_pick(INTEGERS, rng))
    bits = 32 if kind in _NARROW else 64
    low, high = (0, 2**bits - 1) if kind in _UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return min(max(number, low), high)


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with some flipped, left out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(int(rng.geometric(0.4))):
        start = int(rng.integers(len(changed) + 1))
        end = min(len(changed), start + int(rng.geometric(0.1)))
        match rng.integers(6):
            case 0:
                del changed[start:]
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end]
            case 3:
                changed[start:start] = rng.bytes(int(rng.geometric(0.2)))
            case 4:
                changed[start:end] = bytes([int(rng.choice([0, 255, 128, 127]))]) * (end - start)
            case _ if start < len(changed):
                changed[start] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _mutate_list(message: Message, field: Field, messages: list[Message], rng: np.random.Generator) -> None:
    """Takes out, doubles, moves, changes or adds elements."""
    elements = getattr(message, field.name)
    kept = list(elements)
    place = int(rng.integers(len(kept))) if kept else 0
    match rng.integers(6):
        case 0 if kept:
            del kept[place]
        case 1 if kept:
            kept.insert(int(rng.integers(len(kept) + 1)), kept[place])
        case 2 if kept:
            order = rng.permutation(len(kept))
            kept = [kept[index] for index in order]
        case 3:
            kept = []
        case 4 if field.message_type is None and kept:
            kept[place] = mutate_value(field, kept[place], messages, rng)
        case _ if field.message_type is not None:
            same = [other for other in messages if other.DESCRIPTOR is field.message_type]
            if same:
                kept.append(same[rng.integers(len(same))])
        case _:
            empty = "" if field.cpp_type == Field.CPPTYPE_STRING else 0
            empty = b"" if field.type == Field.TYPE_BYTES else empty
            kept.append(mutate_value(field, kept[place] if kept else empty, messages, rng))
    _assign(message, field, kept)


def _assign(message: Message, field: Field, elements: list[Any]) -> None:
    """Puts elements into a repeated field, copies of what stands in the tree already."""
    if field.message_type is not None:
        elements = [type(element).FromString(element.SerializePartialToString()) for element in elements]
    message.ClearField(field.name)
    getattr(message, field.name).extend(elements)


def _mutate_child(message: Message, field: Field, messages: list[Message], rng: np.random.Generator) -> None:
    """Takes a message out, or puts another of its type from the tree in its place."""
    same = [other for other in messages if other.DESCRIPTOR is field.message_type]
    if not same or rng.random() < 0.3:
        message.ClearField(field.name)
        return
    chosen = same[rng.integers(len(same))]
    copy = type(chosen).FromString(chosen.SerializePartialToString())
    getattr(message, field.name).CopyFrom(copy)


def _another_text(text: str, messages: list[Message], rng: np.random.Generator) -> str:
    """A text of the tree, one that means harm, or the old one changed."""
    match rng.integers(3):
        case 0:
            names = [
                value
                for message in messages
                for field, found in message.ListFields()
                if field.type == Field.TYPE_STRING
                for value in (found if field.is_repeated else [found])
            ]
            return str(names[rng.integers(len(names))]) if names else ""
        case 1:
            return str(_pick(TEXTS, rng))
        case _:
            return mutate_bytes(text.encode(), rng).decode(errors="replace")


def _pick(values: tuple[Any, ...], rng: np.random.Generator) -> Any:
    return values[rng.integers(len(values))]
