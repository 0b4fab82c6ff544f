"""Python in a child process of little memory: what untrusted bytes are read in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

ADDRESS_SPACE = 4 << 30  # [bytes]
_PROLOGUE = f"""
import json, resource
resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE}, {ADDRESS_SPACE}))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def tell(**facts):
    print(json.dumps(facts))
"""


def run_limited(code: str, *arguments: object, timeout_s: float = 300.0, env: dict[str, str] | None = None) -> Any:
    """What `code` told with ``tell(name=value, ...)``; it may ask ``peak()``, the most memory it held so far [MiB].

    A child that ends in another way than by itself fails the test, with what it said.
    """
    command = [sys.executable, "-c", _PROLOGUE + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])
