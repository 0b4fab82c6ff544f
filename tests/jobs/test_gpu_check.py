"""`jobs/gpu_check.sh` with everything shrunk, on the CPU; and what it says of a step that hangs, dies or differs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dto_pipeline.collate import collate_scenes
from dto_pipeline.config import PipelineConfig
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import OptimizedScenes, SceneBatch
from tests.crowds import Stander, make_scene

JOBS = Path(__file__).parent.parent.parent / "jobs"
STEPS = ["machine", "pictures", "tests", "equal", "syncs", "micro", "network", "split", "end_to_end", "run"]
STEPS += ["train", "compiled"]


def job(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of `jobs/`."""
    monkeypatch.syspath_prepend(str(JOBS))
    return importlib.import_module(name)


def test_every_step_is_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = job("gpu_steps", monkeypatch)
    assert [step.name for step in job("gpu_check", monkeypatch).STEPS] == STEPS
    assert all(callable(getattr(steps, name)) for name in STEPS)


@pytest.mark.slow
def test_the_whole_check_runs_shrunk_on_a_cpu_and_leaves_a_table_and_json(tmp_path: Path) -> None:
    command = ["bash", str(JOBS / "gpu_check.sh"), "--small", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(STEPS, "done")
    assert steps["equal"]["figures"]["cases"] == 7
    assert set(steps["equal"]["figures"]["different_results"].values()) == {1}
    assert steps["run"]["figures"]["equal_bytes"]
    assert steps["run"]["figures"]["run 1"]["images"] == steps["pictures"]["figures"]["images"] == 4
    assert steps["train"]["figures"]["images_per_s"] > 0
    assert all(steps[name]["table"] in (tmp_path / "report.txt").read_text() for name in STEPS)


def test_without_a_gpu_the_full_check_ends_with_2_and_names_the_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, steps = job("gpu_check", monkeypatch), job("gpu_steps", monkeypatch)
    no_gpu = SimpleNamespace(state="done", figures={"device_type": "cpu"}, table="")
    monkeypatch.setattr(steps, "machine", lambda _: no_gpu)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
    assert program.main() == 2
    assert "no CUDA device; --small" in capsys.readouterr().err


def test_a_step_that_hangs_dies_or_raises_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = job("gpu_check", monkeypatch)
    good = SimpleNamespace(state="done", figures={"a": 1}, table="  a 1")
    steps = SimpleNamespace(
        hangs=lambda _: subprocess.run(["sleep", "600"], check=False),
        dies=lambda _: os._exit(7),
        raises=lambda _: json.loads("{"),
        works=lambda _: good,
    )
    monkeypatch.setitem(sys.modules, "gpu_steps", steps)
    place = SimpleNamespace(out=tmp_path)

    def run(name: str, limit_s: float = 60) -> dict[str, Any]:
        return program._run(program.Step(name, limit_s, ""), place, limit_s)

    started = time.monotonic()
    assert run("hangs", limit_s=1.0)["state"] == "not done within 1 s"
    assert time.monotonic() - started < 30
    assert run("dies")["state"] == "its process ended with 7"
    assert run("raises")["state"].startswith("failed: JSONDecodeError: Expecting")
    assert "Traceback" in (tmp_path / "raises.log").read_text()
    assert run("works", limit_s=0.5)["state"] == "left out: the time is over"
    assert run("works")["figures"] == {"a": 1}


def test_a_device_that_places_people_differently_is_reported(body: BodyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = job("gpu_measure", monkeypatch)
    exact = SceneOptimizer(body, PipelineConfig())
    batch = collate_scenes([make_scene(body, [Stander(x=0.8 * i, z=4.0 + i) for i in range(3)])])

    class Drifting:
        """Right on the CPU; on the device people are one per cent too far and one is not measured."""

        def __init__(self) -> None:
            self.body, self.calls = body, 0

        def __call__(self, batch: SceneBatch) -> OptimizedScenes:
            result, self.calls = exact(batch), self.calls + 1
            if self.calls > 1:
                return result
            usable = result.evidence.usable.clone()
            usable[0, 0] = ~usable[0, 0]
            people = result.people.replace(transl=result.people.transl * 1.01)
            return dataclasses.replace(result, people=people, evidence=result.evidence.replace(usable=usable))

    assert measure.compare_devices(exact, batch) == (0.0, {})
    worst, differing = measure.compare_devices(Drifting(), batch)
    assert worst == pytest.approx(0.01, rel=1e-2)
    assert differing == {"evidence.usable": "1 of 3", "people.transl": "1.0e-02, expected 1e-03 at most"}
    assert measure.digest_of(exact(batch)) == measure.digest_of(exact(batch)) != measure.digest_of(Drifting()(batch))


def test_waits_are_counted_where_the_program_makes_them(body: BodyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = job("gpu_measure", monkeypatch)
    exact = SceneOptimizer(body, PipelineConfig())
    batch = collate_scenes([make_scene(body, [Stander(x=0.8 * i, z=4.0 + i) for i in range(3)])])
    found = measure.count_waits(lambda: exact(batch), torch.device("cpu"))
    assert any(where.startswith("models/rasterizer.py:") for where in found)
    assert not measure.count_waits(lambda: torch.ones(3).sum() + 1, torch.device("cpu"))
    assert sum(measure.count_waits(lambda: torch.ones(3).sum().item(), torch.device("cpu")).values()) == 1
