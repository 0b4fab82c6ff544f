"""Check that this program is correct and fast on this machine's GPU; see `jobs/gpu_check.sh`.

Runs the steps of `gpu_steps` one after the other, each in a process of its own with a time limit of its own, forked
from this one, so that libraries are imported once. This process never touches the GPU: a step that hangs is killed and
the next one begins afresh. Results are written after every step, so that a stopped check keeps its results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "jobs")]  # the marked tests and recorded cases lie with the source

TOTAL_S = 480.0  # of the whole check
SMALL_FACTOR = 5.0  # --small is for machines of any speed: all limits are longer by this factor
GRACE_S = 3.0  # between asking a step to end and killing it


@dataclass(frozen=True)
class Step:
    """One part of the check; `gpu_steps` has a function of its name."""

    name: str
    limit_s: float  # on one H200 with 16 cores
    what: str


STEPS = (
    Step("machine", 60, "device, versions, rates of arithmetic and of memory"),
    Step("pictures", 60, "crowds, manifest and a depth network with random weights, for the steps below"),
    Step("tests", 90, "the tests marked gpu"),
    Step(
        "equal",
        90,
        "recorded images and evidence as on the CPU; the same batch 20 times, also with another stream busy",
    ),
    Step("syncs", 45, "operations that make the CPU wait for the GPU, and where they are"),
    Step("micro", 60, "milliseconds of each part of the optimiser, by batch size and people"),
    Step("network", 90, "the depth network alone: precisions, batch sizes, share of the device's peak"),
    Step("split", 45, "where the time of one window of the depth network goes"),
    Step("end_to_end", 120, "files to placed people against the network alone: batch sizes, decoding threads"),
    Step("run", 90, "dto run twice over the same images: images a second, equal bytes"),
    Step("train", 60, "ten steps of training: images a second, peak memory"),
    Step("compiled", 75, "the depth network compiled by torch"),
)


def main() -> int:
    arguments = _parse()
    if arguments.list:
        print("\n".join(f"{step.name:<12} at most {step.limit_s:>4.0f} s  {step.what}" for step in STEPS))
        return 0
    chosen = [step for step in STEPS if arguments.only is None or step.name in {"machine", "pictures", *arguments.only}]
    try:
        import gpu_steps
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("dto_pipeline", "gpu_")):
            raise
        what = f"lacks {error.name}" if error.name else f"cannot import what the check needs ({error})"
        print(f"{sys.executable} {what}: install it, or bring it as a wheel (--wheels DIR)", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    started, results, factor = time.monotonic(), {}, SMALL_FACTOR if arguments.small else 1.0
    with tempfile.TemporaryDirectory(prefix="dto-gpu-check-", dir=arguments.scratch) as scratch:
        place = gpu_steps.Place(Path(scratch), arguments.out, arguments.small)
        for step in chosen:
            left = factor * arguments.seconds - (time.monotonic() - started)
            results[step.name] = found = _run(step, place, min(left, factor * step.limit_s))
            print(f"{step.name}: {found['state']} in {found['seconds']:.1f} s\n{found['table']}\n", flush=True)
            _write(arguments.out, results, time.monotonic() - started)
            if step.name == "machine" and not arguments.small and found["figures"].get("device_type") != "cuda":
                print("no CUDA device; --small tries the check itself on a CPU", file=sys.stderr)
                return 2
    print(f"{arguments.out / 'report.txt'} and report.json hold all of it")
    return int(any(found["state"] != "done" for found in results.values()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/gpu_check"), metavar="DIR", help="results")
    parser.add_argument("--only", type=_names, metavar="STEP,..", help="these steps and what they need")
    parser.add_argument("--small", action="store_true", help="shrink everything; runs on a CPU too")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, metavar="S", help=f"of all steps ({TOTAL_S:.0f})")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for 3 GB of temporary files (the system's)")
    parser.add_argument("--list", action="store_true", help="name the steps and their limits")
    return parser.parse_args()


def _names(text: str) -> set[str]:
    names = set(text.split(","))
    if unknown := sorted(names - {step.name for step in STEPS}):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such step; --list names them")
    return names


def _run(step: Step, place: Any, limit: float) -> dict[str, Any]:
    """Do one step in a process of its own within `limit` seconds. Returns state, seconds, figures and table."""
    if limit < 1:
        return {"state": "left out: the time is over", "seconds": 0.0, "figures": {}, "table": ""}
    answer = place.out / f"{step.name}.json"
    answer.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(step.name, place))
    started = time.monotonic()
    process.start()
    try:
        process.join(limit)
    finally:  # also where somebody interrupts the check
        late = process.is_alive()
        if late:
            _end(process)
    seconds = time.monotonic() - started
    log = place.out / f"{step.name}.log"
    if late:
        found = {"state": f"not done within {limit:.0f} s", "figures": {}, "table": f"  see {log}"}
    elif answer.is_file():
        found = json.loads(answer.read_text())
    else:
        found = {"state": f"its process ended with {process.exitcode}", "figures": {}, "table": f"  see {log}"}
    return {**found, "seconds": round(seconds, 2)}


def _work(name: str, place: Any) -> None:
    """Do a step in a process group of its own and write figures, table and state; what it prints goes to a log."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with (place.out / f"{name}.log").open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        import gpu_steps

        try:
            report = getattr(gpu_steps, name)(place)
            found = {"state": report.state, "figures": report.figures, "table": report.table}
        except BaseException as error:
            traceback.print_exc(file=log)
            sentence = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            found = {"state": f"failed: {sentence}", "figures": {}, "table": f"  see {place.out / f'{name}.log'}"}
        partial = place.out / f".{name}.json"
        partial.write_text(json.dumps(found, indent=1))
        partial.rename(place.out / f"{name}.json")


def _end(process: Any) -> None:
    """Ask a step and its children to end, then end them."""
    for word in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        process.join(GRACE_S)


def _write(out: Path, results: dict[str, Any], seconds: float) -> None:
    (out / "report.json").write_text(json.dumps({"seconds": round(seconds, 1), "steps": results}, indent=1) + "\n")
    parts = [
        f"{name}: {found['state']} in {found['seconds']:.1f} s\n{found['table']}" for name, found in results.items()
    ]
    (out / "report.txt").write_text("\n\n".join([*parts, f"{seconds:.0f} s in all"]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
