"""Explores with new seeds: every target in a process of its own with 4 GB of addresses, its input kept on disk.

    python -m tests.fuzz SECONDS [SEED] [TARGET ...]

Prints the seed and a line a target; an input that crashes, hangs, takes too much memory or is refused by no name is
kept below fuzz-failures/, and the exit code is 1. With that seed and target the same inputs come again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ADDRESS_SPACE = 4 << 30  # [bytes]
HANG_S = 60.0  # of a processor, for one input: a busy machine is not a hang
WAIT_S = 600.0  # of the clock, for one input: something waits for what never comes
KEPT = Path("fuzz-failures")
_LEAST_S = 5.0  # of a target, beyond what loading the libraries takes


def main() -> int:
    """The parent: shares the time out, watches, keeps what failed."""
    parser = argparse.ArgumentParser(prog="jobs/fuzz.sh")
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    parser.add_argument("seed", type=int, nargs="?", default=None, help="by default a new one")
    parser.add_argument("targets", nargs="*", metavar="target")
    arguments = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {sorted(unknown)}; there are {', '.join(TARGETS)}")
    seed = secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}; again: bash jobs/fuzz.sh {arguments.seconds:g} {seed}", flush=True)
    faults = 0
    for name in names:
        told = _watch(name, seed, max(_LEAST_S, arguments.seconds / len(names)))
        faults += "fault" in told
        print(_line(name, told), flush=True)
    print(f"{faults} of {len(names)} targets failed" + (f"; inputs are in {KEPT}/" if faults else ""))
    return 1 if faults else 0


def _line(name: str, told: dict[str, object]) -> str:
    numbers = ", ".join(f"{told.get(key, '?')} {key}" for key in ("inputs", "refused", "MiB", "slowest_s"))
    return f"  {name:<28} {numbers}" + (
        f"\n    FAULT {told['fault']}\n    input {told['kept']}" if "fault" in told else ""
    )


def _watch(name: str, seed: int, seconds: float) -> dict[str, object]:
    """Let one child work on one target; what it told, or how it ended."""
    with tempfile.TemporaryDirectory(prefix="dto-fuzz-") as folder:
        work = Path(folder)
        command = [sys.executable, "-m", "tests.fuzz.__main__", "--child", name, str(seed), str(seconds), str(work)]
        with (work / "said").open("w") as said:
            child = subprocess.Popen(command, stdout=said, stderr=said)
            hung = False
            while child.poll() is None:
                time.sleep(0.2)
                beat = work / "beat"
                if beat.exists() and time.time() - beat.stat().st_mtime > WAIT_S:
                    child.kill()
                    child.wait()
                    hung = True
        told: dict[str, object] = json.loads((work / "told").read_text()) if (work / "told").exists() else {}
        if hung or (child.returncode != 0 and "fault" not in told):
            hung = hung or child.returncode == -signal.SIGPROF
            how = "no end" if hung else f"exit code {child.returncode}"
            told["fault"] = f"{how}: {(work / 'said').read_text()[-1500:]}"
        if "fault" in told:
            told["kept"] = str(_keep(work, name, seed))
        return told


def _keep(work: Path, name: str, seed: int) -> Path:
    KEPT.mkdir(exist_ok=True)
    inputs = [path for path in work.glob("input*") if path.is_file()]
    kept = KEPT / f"{name}-{seed}-{secrets.token_hex(2)}{inputs[0].suffix if inputs else ''}"
    if inputs:
        shutil.copyfile(inputs[0], kept)
    return kept


def child(name: str, seed: int, seconds: float, work: Path) -> int:
    """Damages and reads until the time is over or something fails."""
    from tests.fuzz.targets import TARGETS, FuzzFault, damaged_files, try_one

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    counts, slowest, target = {"inputs": 0, "refused": 0}, 0.0, TARGETS[name]
    (work / "read").mkdir()
    told: dict[str, object] = {}
    end = time.monotonic() + seconds
    for path in damaged_files(name, seed, None, work / "read" / f"input{target.suffix}"):
        (work / "beat").write_bytes(b"")
        signal.setitimer(signal.ITIMER_PROF, HANG_S)  # ends the process, whatever library it is in
        shutil.copyfile(path, work / f"input{target.suffix}")
        begin = time.monotonic()
        try:
            counts["refused"] += try_one(target, path)
        except FuzzFault as fault:
            told["fault"] = f"{fault}\n{traceback.format_exc()[-1500:]}"
        counts["inputs"] += 1
        slowest = max(slowest, time.monotonic() - begin)
        if told or time.monotonic() > end:
            break
    signal.setitimer(signal.ITIMER_PROF, 0)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (work / "told").write_text(json.dumps({**counts, "MiB": memory, "slowest_s": round(slowest, 2), **told}))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        sys.exit(child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5])))
    sys.exit(main())
