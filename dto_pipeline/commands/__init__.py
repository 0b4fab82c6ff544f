"""The verbs of `dto`, one module each: `add_parser` declares it, `run` parses nothing itself and calls one room."""

from __future__ import annotations

from types import ModuleType

from dto_pipeline.commands import (
    bench,
    body,
    demo,
    diff,
    export,
    golden,
    manifest,
    predict,
    report,
    run,
    status,
    train,
    verify,
    view,
)

VERBS: tuple[ModuleType, ...] = (
    demo,
    manifest,
    run,
    status,
    verify,
    diff,
    view,
    report,
    export,
    body,
    train,
    predict,
    golden,
    bench,
)
