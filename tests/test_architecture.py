"""Who may import whom, read from the imports of every module (see the README's map)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dto_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))

# room -> rooms it may import (its own and the top-level modules always)
ALLOWED = {
    "maths": set(),
    "models": {"maths"},
    "data": {"maths", "models"},
    "evaluate": {"maths", "models", "data"},
    "view": {"maths", "models", "data"},
    "demo": {"maths", "models", "data", "view", "evaluate"},
    "bench": {"maths", "models", "data", "demo", "run"},
    "run": {"maths", "models", "data"},
    "train": {"maths", "models", "data", "evaluate", "view"},
    "review": {"maths", "models", "data", "view", "run"},  # looks at finished runs; nobody imports it but glue
    "": {"maths", "models"},
}
# library -> where it may be imported
DOORS = {
    "pyarrow": ("schema", "data."),
    # actors; Prometheus, which Ray's agents carry; Ray Train; nodes that are started to be destroyed
    "ray": ("run.ray_pool", "run.ray_metrics", "train.loop", "bench.chaos.nodes"),
    "smplx": ("models.body",),
    "transformers": ("models.",),
    "pickle": ("data.",),
    "boto3": ("data.object_store",),
    "botocore": ("data.object_store",),
    "fsspec": ("data.object_store", "data.storage"),
}
GLUE = ("cli", "commands.", "api")  # verbs, and functions for Python users, may call any room


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    name = module_name(path)
    if name.startswith(GLUE):
        return
    room = name.split(".")[0] if "." in name else ""
    for target in imports(path):
        parts = target.split(".")
        if parts[0] != "dto_pipeline" or len(parts) < 3:
            continue
        assert parts[1] == room or parts[1] in ALLOWED[room], f"{name} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_heavy_libraries_have_one_door_each(path: Path) -> None:
    name = module_name(path)
    for target in imports(path):
        doors = DOORS.get(target.split(".")[0])
        if doors is not None:
            right = any(name == door or (door.endswith(".") and name.startswith(door)) for door in doors)
            assert right, f"{name} imports {target}, whose door is {doors}"


def test_pure_rooms_know_neither_files_nor_the_clock_nor_randomness() -> None:
    forbidden = {"os", "pathlib", "time", "datetime", "random", "io", "json"}
    for path in (PACKAGE / "maths").glob("*.py"):
        assert not imports(path) & forbidden, path


def test_nothing_is_unpickled_unsafely_or_trusted() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                constant = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert not (keyword.arg == "allow_pickle" and constant is True), path
                assert not (keyword.arg == "trust_remote_code" and constant is True), path
                assert not (keyword.arg == "weights_only" and constant is False), path
            name = ast.unparse(node.func)
            assert name not in ("pickle.load", "pickle.loads", "np.load") or name == "np.load", f"{path}: {name}"
            if name == "np.load":
                assert any(k.arg == "allow_pickle" for k in node.keywords), f"{path}: np.load without allow_pickle"
            if name == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), f"{path}: torch.load without weights_only"


def test_a_driver_with_nothing_to_do_never_loads_pytorch() -> None:
    command = "import sys, dto_pipeline.run.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
