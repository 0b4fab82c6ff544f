"""Whether a run that was disturbed ended as one nobody disturbed: the rules, read from its files.

Knows label files, receipts and names of temporary files; compares, changes nothing. A rule that is broken becomes one
sentence; no sentence means that the runs are the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.labels import LabelsError, read_labels

Labels = Mapping[str, bytes]  # name of a label file -> its bytes


def read_label_bytes(run_dir: Path) -> dict[str, bytes]:
    """Every label file of a run, by the name of its shard; of two of one shard the older one, which is too many."""
    newest_first = sorted((run_dir / "labels").glob("shard-*.parquet"), reverse=True)
    return {_first_name(path.name): path.read_bytes() for path in newest_first}


def _first_name(name: str) -> str:
    return f"{name.split('.')[0]}.parquet"


def find_differences(run_dir: Path, undisturbed: Labels) -> list[str]:
    """What tells a finished run from the undisturbed one; empty = nothing."""
    return [
        *_compare_bytes(run_dir, undisturbed),
        *_count_images(run_dir),
        *_check_receipts(run_dir, undisturbed),
        *_find_leftovers(run_dir),
    ]


def _compare_bytes(run_dir: Path, undisturbed: Labels) -> Iterator[str]:
    found = read_label_bytes(run_dir)
    for name in sorted(undisturbed.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in undisturbed:
            yield f"{name} is one too many"
        elif found[name] != undisturbed[name]:
            yield f"{name} has other bytes"


def _count_images(run_dir: Path) -> Iterator[str]:
    """Every image has one row; that none is missing follows from the bytes."""
    rows: Counter[str] = Counter()
    for path in sorted((run_dir / "labels").glob("shard-*.parquet")):
        try:
            rows.update(read_labels(path).column("image_id").to_pylist())
        except LabelsError as error:
            yield str(error)
    yield from (f"image {image} has {count} rows" for image, count in rows.items() if count != 1)


def _check_receipts(run_dir: Path, undisturbed: Labels) -> Iterator[str]:
    """Every label file has a receipt that tells its size and sha256; others are of label files that are gone."""
    shards = {Path(name).stem for name in undisturbed}
    found = {path.stem: path for path in (run_dir / "receipts").glob("shard-*")}
    labels = {path.stem: path for path in (run_dir / "labels").glob("shard-*.parquet")}
    yield from (f"receipt {name}.json is one too many" for name in sorted(found) if name.split(".")[0] not in shards)
    yield from (f"receipt {name}.json is missing" for name in sorted(labels.keys() - found.keys()))
    for name in sorted(labels.keys() & found.keys()):
        try:
            receipt = json.loads(found[name].read_bytes())
        except ValueError:
            yield f"receipt {name}.json is not JSON"
            continue
        told = receipt.get("label_bytes"), receipt.get("label_sha256")
        if told != (labels[name].stat().st_size, sha256_file(labels[name])):
            yield f"receipt {name}.json tells another size or sha256 than its label file has"


def _find_leftovers(run_dir: Path) -> Iterator[str]:
    """Hidden files are somebody's half work; failures belong to shards that are not done."""
    for path in sorted(run_dir.rglob("*")):
        place = path.relative_to(run_dir)
        if path.name.startswith("."):
            yield f"temporary file {place} was left"
        elif place.parts[0] == "failures" and path.is_file():
            yield f"{place} was left although the shard is done"
