"""The pages in jobs/ as far as paper can tell: right fields, pinned versions, commands that the real parser takes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from dto_pipeline.cli import build_parser
from dto_pipeline.commands.options import read_config
from dto_pipeline.train.config import load_train_config

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
PAGES = sorted(
    path
    for name in ("generate.*", "kuberay.yaml", "train_kuberay.yaml", "slurm.sh", "cluster.yaml")
    for path in JOBS.glob(name)
)
RAYJOBS = [JOBS / "kuberay.yaml", JOBS / "train_kuberay.yaml"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _header(path: Path) -> str:
    """The comment a page begins with, without its marks; #! and #SBATCH lines are not part of it."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("#!", "#SBATCH")):
            lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines)


def _commands(text: str) -> list[list[str]]:
    """Every `dto VERB ...` of a text, continuation lines joined; comments after two spaces and a # are cut."""
    joined = re.sub(r"\\\n\s*(?:# *)?", " ", text)
    found = []
    for line in joined.splitlines():
        if match := re.match(r"\s*(?:sbatch jobs/slurm\.sh )?dto ((?!-)\w.*)", line):
            found.append(shlex.split(match[1], comments=True))
    return found


def _generate_options(text: str) -> list[list[str]]:
    """What `bash jobs/generate.sh ADDRESS MANIFEST RUN ...` of a text hands to `dto run`."""
    joined = re.sub(r"\\\n\s*(?:# *)?", " ", text)
    calls = [shlex.split(match[1]) for match in re.finditer(r"bash jobs/generate\.sh (http.*)", joined)]
    return [["run", call[1], "-o", call[2], *call[3:]] for call in calls]


def _all_commands() -> list[tuple[str, list[str]]]:
    texts = [(_name(page), _header(page)) for page in PAGES]
    texts.append(("docs/cluster.md", (ROOT / "docs/cluster.md").read_text()))
    texts += [(f"{_name(page)}: entrypoint", _load(page)["spec"]["entrypoint"]) for page in RAYJOBS]
    return [(name, command) for name, text in texts for command in (*_commands(text), *_generate_options(text))]


COMMANDS = _all_commands()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_job_file_says_its_command_time_result_and_what_to_change(page: Path) -> None:
    header = _header(page)

    assert re.match(r"[A-Z].*[.:]", header.strip()), header[:80]
    for word in ("Time:", "Expect:", "Change:"):
        assert word in header, word
    assert re.search(r"^ +(bash|sbatch|kubectl|ray) ", header, re.M)


def test_commands_are_found_in_every_kind_of_job_file() -> None:
    names = {name.partition(":")[0] for name, _ in COMMANDS}
    assert names >= {"jobs/generate.sh", "jobs/kuberay.yaml", "jobs/slurm.sh", "jobs/cluster.yaml", "docs/cluster.md"}
    assert sum(command[0] == "run" for _, command in COMMANDS) >= 5


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_the_parser_takes_every_command_of_a_job_file(where: str, command: list[str]) -> None:
    arguments = build_parser().parse_args(command)

    # options that do not exist are refused here
    if command[0] == "train":
        config = load_train_config(JOBS / "train.yaml", arguments.overrides)
        assert arguments.workers
        assert config.loop.gpu
    elif hasattr(arguments, "overrides"):
        read_config(arguments)


@pytest.mark.parametrize("page", RAYJOBS, ids=_name)
def test_rayjobs_have_the_fields_that_kuberay_knows(page: Path) -> None:
    schema = json.loads((Path(__file__).parent / "schemas/rayjob.json").read_text())
    jsonschema.validate(_load(page), schema)


@pytest.mark.parametrize("page", RAYJOBS, ids=_name)
def test_a_rayjob_writes_to_a_volume_that_every_pod_mounts(page: Path) -> None:
    spec = _load(page)["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]

    for pod in pods:
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounts == {"/shared": "dto-shared"}
    assert "-o /shared/" in spec["entrypoint"]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1


def test_the_cluster_file_is_what_rays_launcher_takes() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = _load(JOBS / "cluster.yaml")
    jsonschema.validate(cluster, schema)

    types = cluster["available_node_types"]
    assert "InstanceMarketOptions" not in types[cluster["head_node_type"]]["node_config"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_jobs_environment_is_one_that_ray_takes_and_pins_what_the_tests_ran_with() -> None:
    from ray.runtime_env import RuntimeEnv

    plain = _load(JOBS / "generate.yaml")
    RuntimeEnv(**{name: value for name, value in plain.items() if name != "working_dir"})

    constraints = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for line in plain["pip"]["packages"]:
        name, _, pinned = line.partition("==")
        assert pinned == constraints.get(name, version(name)), line


def test_every_job_file_names_the_version_of_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    texts = [path.read_text() for path in (*PAGES, JOBS / "Dockerfile")]
    named = {found for text in texts for found in re.findall(r"[Rr]ay[^\n]*?(\d+\.\d+\.\d+)", text)}
    assert named == {pinned[1]}


@pytest.mark.parametrize("script", sorted(JOBS.glob("*.sh")), ids=_name)
def test_shell_scripts_are_sound_bash_that_stops_at_errors(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if script.name != "environment.sh":  # sourced
        assert "\nset -euo pipefail\n" in script.read_text()


def test_no_job_ends_processes_by_name() -> None:
    for path in JOBS.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"^[^#]*\b(ray stop|pkill|killall)\b", path.read_text(), re.M), path


def test_the_slurm_script_asks_to_be_warned_and_queued_again() -> None:
    asked = re.findall(r"^#SBATCH --(\S+)", (JOBS / "slurm.sh").read_text(), re.M)
    assert {"signal=B:TERM@120", "requeue", "ntasks-per-node=1"} <= set(asked)
