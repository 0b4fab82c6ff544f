"""Where verbs may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.commands.output import lasting_place, local_place
from dto_pipeline.errors import DtoError


def test_a_file_uri_is_a_local_folder() -> None:
    assert local_place("file:///a/b") == local_place("/a/b") == Path("/a/b")
    with pytest.raises(DtoError, match="s3://box/a is a URI; this is written to a local folder"):
        local_place("s3://box/a")


@pytest.mark.parametrize("place", ["memory://box/a", "https://server/a"])
def test_places_where_nothing_can_stay_are_refused(place: str) -> None:
    assert lasting_place("s3://box/a") == "s3://box/a"
    with pytest.raises(DtoError, match="name a folder or a bucket"):
        lasting_place(place)


def test_a_run_in_memory_is_refused_before_anything_is_done(capsys) -> None:
    assert main(["run", "none.parquet", "-o", "memory://box/run"]) == 2
    assert "ends with it" in capsys.readouterr().err
