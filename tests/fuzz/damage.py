"""Damage to bytes and to plain values, drawn from a seeded generator."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, -5, 2**31, 2**63, 2**70, 10_000_000, 0.5, 1e22, 1e308, -1e-300),
    *(float("nan"), float("inf"), "", "x", "\x9b\u202e", "../../etc/passwd", "x" * 5000, [], {}, [None], [[[]]]),
    *({"a": 1}, {"": {}}, list(range(50))),
)


def damage_bytes(random_: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A copy with one to four faults: bits, numbers, pieces overwritten, cut out, doubled, or of another file."""
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        if random_.random() < 0.5:  # most of what a reader believes stands at either end
            at = (
                min(at, random_.randrange(64))
                if random_.random() < 0.6
                else max(0, len(data) - random_.randrange(1, 200))
            )
        kind, length = random_.randrange(7), random_.choice((1, 1, 2, 4, 8, 60, 1000))
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            number, order = random_.choice(_NUMBERS), random_.choice(("<", ">"))
            size, code = random_.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
            data = data[:at] + struct.pack(order + code, number & ((1 << 8 * size) - 1)) + data[at + size :]
        elif kind == 2:
            data = data[:at] + random_.randbytes(min(length, 60)) + data[at + length :]
        elif kind == 3:
            data = data[:at] + data[at + length :]
        elif kind == 4:
            data = data[: at + length] + data[at:]
        elif kind == 5:
            data = data[:at]
        else:
            other = random_.choice(others)
            start = random_.randrange(len(other) + 1)
            data = data[:at] + other[start : start + length] + data[at:]
    return data


def damage_value(random_: random.Random, value: Any) -> Any:
    """A copy of nested dicts and lists with something in it replaced, taken away or added."""
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        if random_.random() < 0.15:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: damage_value(random_, value[key])}
    if isinstance(value, list) and value and random_.random() < 0.8:
        place = random_.randrange(len(value))
        return [*value[:place], damage_value(random_, value[place]), *value[place + 1 :]]
    return random_.choice(_VALUES)


def damage_zip(random_: random.Random, data: bytes) -> bytes:
    """A zip whose members are damaged but whose checksums are right, so that readers go on to what is inside."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as target:
        members = [(member, source.read(member)) for member in source.infolist()]
        hit = random_.randrange(len(members))
        for place, (member, content) in enumerate(members):
            changed = damage_bytes(random_, content, [content]) if place == hit else content
            target.writestr(member.filename, changed, member.compress_type)
    return stream.getvalue()
