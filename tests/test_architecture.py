"""Who may import whom, read from the imports of every module (see docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HERE, LONG, RAY

PACKAGE = Path(__file__).parent.parent / "dto_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))

# package -> packages it may import (its own and the top-level modules always)
ALLOWED = {
    "maths": set(),
    "models": {"maths"},
    "data": {"maths", "models"},
    "evaluate": {"maths", "models", "data"},
    "view": {"maths", "models", "data"},
    "run": {"maths", "models", "data"},
    "train": {"maths", "models", "data"},
    "lab": {
        "maths",
        "models",
        "data",
        "evaluate",
        "view",
        "run",
        "train",
    },  # proves the others; nobody imports it but the verbs
    "assets": set(),
    "": {"maths", "models"},
}
# view reads finished runs: their folder, receipts and the words of their summary; it never starts or changes one
ALSO = {
    "view": {
        "run.folder",
        "run.identity",
        "run.lease",
        "run.report",
    },
}
# library -> where it may be imported
DOORS = {
    "pyarrow": ("schema", "data."),
    # actors; how Ray starts; Ray Train
    "ray": ("run.ray_pool", "run.ray_start", "train.loop"),
    "smplx": ("models.body",),
    "transformers": ("models.",),
    "pickle": ("data.",),
    "obstore": ("data.object_store",),
}
GLUE = ("cli", "commands.", "api")  # verbs, and functions for Python users, may call any package


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _is_place(name: str) -> bool:
    """Whether a dotted name below the package is a module or a folder of modules."""
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(source: str) -> set[str]:
    """The modules a source imports: `from run import plan` means run.plan, `from module import name` module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            module = node.module or ""
            below = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name.startswith("dto_pipeline.") and _is_place(name) else module for name in below}
    return found


def forbidden(name: str, source: str) -> set[str]:
    """What the source of a module may not import, among the package's own modules."""
    own = name.split(".")[0] if "." in name else ""
    wrong = set()
    for target in imports(source):
        package, _, below = target.partition(".")
        if package != "dto_pipeline" or not (PACKAGE / below.split(".")[0]).is_dir() or not below:
            continue
        if below.split(".")[0] not in {own, *ALLOWED[own]} and below not in ALSO.get(own, ()):
            wrong.add(target)
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_package_imports_only_the_packages_below_it(path: Path) -> None:
    name = module_name(path)
    if not name.startswith(GLUE):
        assert not forbidden(name, path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "from dto_pipeline.run import folder",
        "from dto_pipeline.run.folder import RunDirectory",
        "from dto_pipeline import run",
        "import dto_pipeline.run",
        "def later():\n    from dto_pipeline.run import folder as files",
    ],
)
def test_the_guard_sees_every_way_to_write_an_import(line: str) -> None:
    assert forbidden("maths.camera", line)
    assert not forbidden("run.plan", line)


def test_modules_do_not_import_each_other_in_circles() -> None:
    arrows = {
        module_name(path): {
            target.removeprefix("dto_pipeline.")
            for target in imports(path.read_text())
            if target.startswith("dto_pipeline.") and target != f"dto_pipeline.{module_name(path)}"
        }
        for path in MODULES
        if not module_name(path).startswith(GLUE) and path.name != "__init__.py"
    }
    while arrows:  # take away whoever imports nobody that is left
        ends = [name for name, targets in arrows.items() if not targets & arrows.keys()]
        assert ends, f"circle among {sorted(arrows)}"
        for name in ends:
            del arrows[name]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_heavy_libraries_have_one_door_each(path: Path) -> None:
    name = module_name(path)
    for target in imports(path.read_text()):
        doors = DOORS.get(target.split(".")[0])
        if doors is not None:
            right = any(name == door or (door.endswith(".") and name.startswith(door)) for door in doors)
            assert right, f"{name} imports {target}, whose door is {doors}"


def test_pure_packages_know_neither_files_nor_the_clock_nor_randomness() -> None:
    unwanted = {"os", "pathlib", "time", "datetime", "random", "io", "json"}
    for path in (PACKAGE / "maths").glob("*.py"):
        assert not imports(path.read_text()) & unwanted, path


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
            if name.startswith("np.savez"):  # numpy before 2.1 writes the word as one more array
                assert all(k.arg != "allow_pickle" for k in node.keywords), f"{path}: np.savez with allow_pickle"
            if name == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), f"{path}: torch.load without weights_only"


def test_a_driver_with_nothing_to_do_never_loads_pytorch() -> None:
    command = "import sys, dto_pipeline.run.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_files_that_are_long_or_start_ray_are_there() -> None:
    assert not [name for name in sorted(LONG | RAY.keys()) if not (HERE / name).is_file()]
