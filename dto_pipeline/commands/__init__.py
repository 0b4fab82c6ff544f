"""The verbs of `dto`, one module each: `add_parser` declares it, `run` parses nothing itself and calls one package."""

from __future__ import annotations

from types import ModuleType

from dto_pipeline.commands import (
    bench,
    body,
    demo,
    diff,
    eval,
    export,
    golden,
    manifest,
    predict,
    report,
    run,
    status,
    synth,
    train,
    verify,
    view,
)

VERBS: tuple[ModuleType, ...] = (
    *(demo, manifest, run, status, verify, diff, view, report, export),
    *(train, predict, synth, eval, body, golden, bench),
)
