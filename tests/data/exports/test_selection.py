"""Which images and people an export takes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from dto_pipeline.data.columns import rows_sha256, single_array
from dto_pipeline.data.exports.job import PERSON_CHOICES, Selection, select_rows
from dto_pipeline.data.label_files import Limits


def statuses(table: pa.Table) -> list[list[str]]:
    return [[person["status"] for person in people] for people in table["persons"].to_pylist()]


def test_nothing_is_left_out_by_default(labels) -> None:
    assert select_rows(labels["mpii"], Selection(), Counter()) is labels["mpii"]


def test_accepted_only_takes_the_images_the_run_accepted(labels) -> None:
    taken = select_rows(labels["mpii"], Selection(accepted_only=True), Counter())
    expected = [row["image_id"] for row in labels["mpii"].to_pylist() if row["is_accepted"]]
    assert taken["image_id"].to_pylist() == expected
    assert 0 < len(expected) < labels["mpii"].num_rows


def test_a_threshold_replaces_the_one_of_the_run(labels) -> None:
    deviation = labels["mpii"]["mean_height_deviation"].to_numpy()[labels["mpii"]["is_optimized"].to_numpy()]
    middle = float(np.median(deviation))
    taken = select_rows(labels["mpii"], Selection(accepted_only=True, max_deviation=middle), Counter())
    assert taken.num_rows == int((deviation < middle).sum()) > 0
    assert taken["is_optimized"].to_numpy().all()


def test_people_without_a_usable_label_are_left_out_and_their_images_stay(labels) -> None:
    taken = select_rows(labels["mpii"], Selection(persons="valid"), Counter())
    assert taken["image_id"].equals(labels["mpii"]["image_id"])
    expected = [[word for word in people if word != "invalid_label"] for people in statuses(labels["mpii"])]
    assert statuses(taken) == expected
    assert taken["num_persons"].to_pylist() == [len(people) for people in expected]


def test_images_are_judged_by_the_people_that_remain(labels) -> None:
    taken = select_rows(labels["mpii"], Selection(persons="moved", min_persons=3), Counter())
    moved = [people.count("moved") for people in statuses(labels["mpii"])]
    assert taken.num_rows == sum(count >= 3 for count in moved) > 0
    assert {word for people in statuses(taken) for word in people} == {"moved"}


def test_a_person_who_is_too_uncertain_is_counted_once_even_if_the_image_is_left_out_too(labels) -> None:
    table = labels["mpii"]
    left_out: Counter[str] = Counter()
    selection = Selection(persons="moved", min_persons=2, limits=Limits(max_z_sigma=1e-9))
    assert select_rows(table, selection, left_out).num_rows == 0
    people = sum(count for reason, count in left_out.items() if reason.startswith("persons"))
    assert people == sum(table["num_persons"].to_pylist())


@pytest.mark.parametrize("persons", PERSON_CHOICES)
@pytest.mark.parametrize("min_persons", [0, 2, 3])
@pytest.mark.parametrize("accepted_only", [False, True])
def test_everyone_is_taken_or_counted_as_left_out(labels, persons, min_persons, accepted_only) -> None:
    left_out: Counter[str] = Counter()
    taken = select_rows(labels["mpii"], Selection(accepted_only, None, min_persons, persons), left_out)
    images = sum(count for reason, count in left_out.items() if reason.startswith("images"))
    people = sum(count for reason, count in left_out.items() if reason.startswith("persons"))
    assert taken.num_rows + images == labels["mpii"].num_rows
    assert len(single_array(taken["persons"]).flatten()) + people == sum(labels["mpii"]["num_persons"].to_pylist())


def test_the_covariance_of_an_image_shrinks_with_its_people(labels) -> None:
    table = labels["mpii"]
    counts = table["num_persons"].to_pylist()
    matrices = [np.arange(n * n, dtype=np.float32).reshape(n, n) for n in counts]
    triangles = [None, *(matrix[np.tril_indices(len(matrix))] for matrix in matrices[1:])]
    column = table.schema.get_field_index("z_covariance")
    table = table.set_column(column, table.schema.field(column), [pa.array(triangles, pa.list_(pa.float32()))])
    taken = select_rows(table, Selection(persons="moved", min_persons=1), Counter())
    expected = []
    for matrix, triangle, people in zip(matrices, triangles, statuses(labels["mpii"]), strict=True):
        moved = [i for i, word in enumerate(people) if word == "moved"]
        small = matrix[np.ix_(moved, moved)]
        if moved:
            expected.append(None if triangle is None else small[np.tril_indices(len(moved))].tolist())
    assert taken["z_covariance"].to_pylist() == expected
    assert 0 < sum(map(len, filter(None, expected))) < sum(n * (n + 1) // 2 for n in counts)


def test_a_projection_and_a_slice_select_the_same_people(labels) -> None:
    selection = Selection(accepted_only=True, persons="valid")
    whole = select_rows(labels["mpii"], selection, Counter())
    parts = [select_rows(labels["mpii"].slice(start, 2), selection, Counter()) for start in range(0, 9, 2)]
    assert rows_sha256(pa.concat_tables(parts)) == rows_sha256(whole)
