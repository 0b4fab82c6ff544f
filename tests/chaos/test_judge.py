"""The judge of disturbed runs sees what it is there to see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid

import pytest

from tests.chaos.faults import CLOCK, DIE, RAISE, Fault, arm_environment
from tests.chaos.judge import find_differences, read_label_bytes
from tests.chaos.processes import end_marked, find_marked, mark_environment


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _label(run_dir, shard):
    return run_dir / "labels" / f"shard-{shard:05d}.parquet"


def _flip_a_byte(run_dir):
    content = bytearray(_label(run_dir, 2).read_bytes())
    content[3000] ^= 1
    _label(run_dir, 2).write_bytes(content)


def _edit_a_receipt(run_dir):
    path = run_dir / "receipts" / "shard-00001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_bytes": 1}))


DAMAGES = {
    "shard-00002.parquet has other bytes": _flip_a_byte,
    "shard-00003.parquet is missing": lambda run_dir: _label(run_dir, 3).unlink(),
    "shard-00006.parquet is one too many": lambda run_dir: shutil.copy(_label(run_dir, 5), _label(run_dir, 6)),
    "image tiny/000015.jpg has 2 rows": lambda run_dir: shutil.copy(_label(run_dir, 5), _label(run_dir, 6)),
    "receipt shard-00001.json tells another size or sha256 than its label file has": _edit_a_receipt,
    "receipt shard-00004.json is missing": lambda run_dir: (run_dir / "receipts" / "shard-00004.json").unlink(),
    "receipt shard-00009.json is one too many": lambda run_dir: (run_dir / "receipts/shard-00009.json").touch(),
    "receipt shard-00000.json is not JSON": lambda run_dir: (run_dir / "receipts/shard-00000.json").write_text("{"),
    "temporary file labels/.x.tmp-0 was left": lambda run_dir: (run_dir / "labels" / ".x.tmp-0").touch(),
    "failures/shard-00000.json was left although the shard is done": lambda run_dir: (
        run_dir / "failures/shard-00000.json"
    ).touch(),
}


def test_a_run_is_no_different_from_itself(run_dir, finished):
    assert find_differences(run_dir, read_label_bytes(finished)) == []


@pytest.mark.parametrize("sentence", DAMAGES)
def test_the_judge_names_every_kind_of_damage(run_dir, finished, sentence):
    DAMAGES[sentence](run_dir)

    assert sentence in find_differences(run_dir, read_label_bytes(finished))


def _python(code, tmp_path, faults=(), clock=None):
    environment = {**os.environ, **arm_environment(tmp_path / "faults", faults, clock)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_poisoned_file_kills_whoever_opens_it_and_nobody_else(tmp_path):
    faults = [Fault("poison.jpg", DIE)]

    assert _python("open('poison.jpg')", tmp_path, faults).returncode == -9
    assert "No such file" in _python("open('honey.jpg')", tmp_path, faults).stderr


def test_a_fault_that_happens_once_happens_to_one_process_only(tmp_path):
    faults = [Fault("link", RAISE, events=("os.link",), times=1)]
    answers = [_python("import os; os.link('a', 'link')", tmp_path, faults).stderr for _ in range(2)]

    assert ["InjectedFault" in answer for answer in answers] == [True, False]


def test_the_clock_of_a_process_follows_the_file(tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("-86400")
    code = f"import time; a = time.time(); open({str(clock)!r}, 'w').write('0'); print(time.time() - a)"

    assert float(_python(code, tmp_path, clock=clock).stdout) == pytest.approx(86400, abs=60)
    assert CLOCK not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_marked_processes_are_found_through_their_descendants_and_ended():
    mark = uuid.uuid4().hex
    code = "import subprocess, sys; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **mark_environment(mark)}, check=True)

    assert len(find_marked(mark)) == 1
    end_marked(mark)
    assert find_marked(mark) == []
