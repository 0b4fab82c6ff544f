"""`jobs/slurm.sh` with stand-ins for `srun` and `scontrol`: two real Ray nodes on this machine, a tiny run on them."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.jobs.conftest import TINY_OPTIONS
from tests.run.chaos import label_bytes
from tests.tiny_dataset import TinyDataset

ROOT = Path(__file__).parents[2]
WAIT_S = 180.0
# What the real one does for the steps of the script: drops its own options, becomes the command. Ray's dashboard, a
# dozen processes that nobody looks at here, is left out.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$FAKE_SLURM_LOG"
while [[ "$1" == --* ]]; do shift; done
if [ "$1" = hostname ]; then echo 127.0.0.1; exit; fi
if [ "$*" != "${*/--head/}" ]; then set -- "$@" --include-dashboard=false; fi
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$FAKE_SLURM_LOG"
if [ "$1" = show ]; then printf '%s\\n' ${3//,/ }; fi
"""


@pytest.fixture
def slurm(short_folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Environment of a job on two nodes of one CPU each."""
    tools = short_folder / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return environment | {
        "PATH": f"{tools}:{environment['PATH']}",
        "FAKE_SLURM_LOG": str(short_folder / "slurm.log"),
        "SLURM_JOB_ID": str(int(time.time() * 10) % 10**8),  # its port and folder follow from it
        "SLURM_JOB_NODELIST": "node1,node2",
        "SLURM_CPUS_PER_TASK": "1",
    }


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            ["bash", "jobs/slurm.sh", *command], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def _run_command(tiny: TinyDataset, run_dir: Path, workers: int) -> list[str]:
    options = ["--address", "auto", "--workers", str(workers), "--quiet", "-v", *TINY_OPTIONS]
    return ["dto", "run", str(tiny.manifest), "-o", str(run_dir), *options]


@pytest.mark.slow
def test_a_job_stopped_by_slurm_is_queued_again_and_then_finishes_with_the_exit_code_of_its_command(
    tiny: TinyDataset, undisturbed: dict[str, bytes], slurm: dict[str, str], short_folder: Path
) -> None:
    run_dir, log = short_folder / "run", short_folder / "job.log"
    job = _start(_run_command(tiny, run_dir, 1), slurm, log)
    _wait_for_receipt(run_dir, job, log)
    job.send_signal(signal.SIGTERM)  # what --signal=B:TERM@120 sends to the batch shell alone
    assert job.wait(WAIT_S) != 0, log.read_text()
    assert "goes back into the queue" in log.read_text()
    asked = (short_folder / "slurm.log").read_text()
    assert f"scontrol requeue {slurm['SLURM_JOB_ID']}" in asked
    assert _commands_of(slurm["SLURM_JOB_ID"]) == []  # nothing of this job's Ray is left

    alone = {**slurm, "SLURM_JOB_NODELIST": "node1", "FAKE_SLURM_LOG": str(short_folder / "again.log")}
    job = _start(["bash", "-c", '"$@" && exit 7', "-", *_run_command(tiny, run_dir, 1)], alone, log)

    assert job.wait(WAIT_S) == 7, log.read_text()
    assert label_bytes(run_dir) == undisturbed
    assert "requeue" not in (short_folder / "again.log").read_text()
    assert "--nodelist=node1" in asked
    assert "--nodes=1 --ntasks=1 --overlap --exclude=node1 ray start --address=127.0.0.1:" in asked
    assert _commands_of(slurm["SLURM_JOB_ID"]) == []


def test_no_command_is_answered_with_the_usage(slurm: dict[str, str], short_folder: Path) -> None:
    log = short_folder / "job.log"

    assert _start([], slurm, log).wait(WAIT_S) == 2
    assert "usage: sbatch jobs/slurm.sh" in log.read_text()


def _wait_for_receipt(run_dir: Path, job: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not list(run_dir.glob("receipts/shard-*.json")):
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def _commands_of(job_id: str) -> list[str]:
    """Command lines of the processes that belong to this job's Ray, once they had time to go."""
    deadline = time.monotonic() + 30.0
    while True:
        lines = [_command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        found = [line for line in lines if f"ray-{job_id}" in line]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _command_line(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it ended while we looked
        return ""
