"""Which images are accepted, by the published rule and by the posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dto_pipeline.bounds import Acceptance, read_acceptance
from dto_pipeline.config import load_config

PAPER = read_acceptance(load_config(None, ["solver.mode=paper"]).to_dict())
JOINT = read_acceptance(load_config(None, ["solver.mode=joint"]).to_dict())


def judge(rule: Acceptance, **changes: Any) -> list[bool]:
    """Two images of two people at 4 m whose distances are known to 3 %, but for `changes`."""
    columns: dict[str, Any] = {
        "is_optimized": np.array([True, True]),
        "deviation": np.array([0.5, 0.5], np.float32),
        "expected_error": np.array([0.12, 0.12], np.float32),
        "owner": np.array([0, 0, 1, 1]),
        "z": np.full(4, 4, np.float32),
        "z_sigma": np.full(4, 0.15, np.float32),
        "height": np.full(4, 1.7, np.float32),
        "is_child": np.zeros(4, bool),
    }
    columns.update({name: np.asarray(value, columns[name].dtype) for name, value in changes.items()})
    return rule.judge(**columns).tolist()


def test_a_good_image_is_accepted_by_both_rules() -> None:
    assert judge(PAPER) == judge(JOINT) == [True, True]


@pytest.mark.parametrize("rule", [PAPER, JOINT])
def test_an_image_not_optimised_or_far_from_its_priors_is_accepted_by_neither(rule: Acceptance) -> None:
    assert judge(rule, is_optimized=[False, True]) == [False, True]
    assert judge(rule, deviation=[0.5, 1.5]) == [True, False]


def test_an_image_whose_distances_are_uncertain_is_not_accepted() -> None:
    assert judge(JOINT, expected_error=[0.12, 0.21]) == [True, False]
    assert judge(JOINT, expected_error=[np.nan, 0.12]) == [False, True]
    assert judge(JOINT, expected_error=[0.3, 0.21], z=[8, 8, 4, 4]) == [True, False]  # relative to the distance
    assert judge(PAPER, expected_error=[np.nan, np.nan], z_sigma=[np.nan] * 4) == [True, True]


def test_a_grown_person_as_tall_as_a_child_costs_its_image() -> None:
    assert judge(JOINT, height=[1.7, 1.44, 1.7, 1.45]) == [False, True]
    assert judge(JOINT, height=[1.7, 1.44, 1.7, 0.8], is_child=[False, False, False, True]) == [False, True]
    assert judge(JOINT, height=[1.7, np.nan, 1.7, 1.7]) == [True, True]  # nobody knows how tall
    assert judge(PAPER, height=[1.0] * 4) == [True, True]  # the published rule does not ask


def test_a_run_of_a_version_that_knew_no_other_rule_is_judged_by_the_published_one() -> None:
    config = load_config(None, ["solver.mode=joint"]).to_dict()
    del config["joint"]["accept_error_below"]
    assert read_acceptance(config) == PAPER
