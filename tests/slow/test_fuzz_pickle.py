"""Damaged pickles: whatever the bytes, a value or a refusal comes out, and nothing runs (heard by an audit hook).

The npz files around them are a target of `test_fuzz_readers`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto_pipeline.data.inert_pickle import Limits, PickleRefused
from dto_pipeline.data.safe_pickle import SMPL_FILE, safe_loads
from tests.audit_watch import AuditWatch
from tests.pickle_streams import F8, HOSTILE, array, attributes, buffer, call, instance, integer, name, text

pytestmark = pytest.mark.slow

_LIMITS = Limits(max_array_bytes=2**24, max_items=100_000)
_VALUE = {"a": [np.arange(3.0), np.float32(1), "text", -5, 2**40, None], "b": (b"raw", {1: True}), "c": np.array(["x"])}
_SEEDS = [pickle.dumps(_VALUE, protocol) for protocol in range(6)] + [stream.data for stream in HOSTILE if stream.data]
_NUMBERS = array(b"K\x03\x85", F8, buffer(bytes(24)))
# every opcode with a small argument, every allowed name, and a few whole objects
_PIECES = [
    *(bytes([code]) for code in range(256)),
    *(name(*allowed) for allowed in SMPL_FILE),
    *(text("latin1"), text("b"), text("f8"), text("O8"), text("x"), buffer(b"ab"), integer(2**40), integer(-1)),
    *(b"K\x01", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"(", b"t", b"R", b"b", b"\x81", b")", b"]", b"}"),
    *(
        _NUMBERS,
        F8,
        instance("chumpy.ch", "Ch", attributes(x=_NUMBERS)),
        call("_codecs", "encode", text("a"), text("latin1")),
    ),
]
_settings = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def watch() -> AuditWatch:
    for protocol in range(6):  # codecs load on first use
        safe_loads(pickle.dumps(["\u20ac", 1.5, np.zeros(1)], protocol))
    return AuditWatch()


def _refusal(read: Callable[[], object]) -> str | None:
    """What the reader says against its input, None if it read it; any other exception fails the test."""
    try:
        read()
    except PickleRefused as refusal:
        return str(refusal)
    return None


def _read(data: bytes, watch: AuditWatch) -> None:
    with watch.listening() as heard:
        refusal = _refusal(lambda: safe_loads(data, SMPL_FILE, _LIMITS, object_arrays=True))
    assert heard == []
    assert refusal is None or len(refusal) < 500


@st.composite
def _mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 4)))
        patch: bytes = draw(st.sampled_from(_PIECES) | st.binary(max_size=4))
        data = data[:start] + patch + data[end:]
    return data


@_settings
@given(data=_mutated(_SEEDS))
def test_mutated_pickles_give_a_value_or_a_refusal(watch: AuditWatch, data: bytes) -> None:
    _read(data, watch)


@_settings
@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=25))
def test_random_programs_give_a_value_or_a_refusal(watch: AuditWatch, pieces: list[bytes]) -> None:
    _read(b"".join(pieces) + b".", watch)
