"""The MAP fit: what it recovers, whom it sets aside, and that members of a batch never meet."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.config import SolverConfig
from dto_pipeline.maths.paper_solver import lower_bound, new_heights, solve_map
from dto_pipeline.scene import MapProblem, MapSolution

CONFIG = SolverConfig()


def make_problem(depth: list[float], z: list[float], mean: list[float], height: list[float], **rest) -> MapProblem:
    """One fit from plain lists; bodies without internal slope unless given."""
    people = len(depth)

    def row(values: list[float]) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    return MapProblem(
        height=row(height),
        z=row(z),
        depth=row(depth),
        depth_std=row(rest.get("depth_std", [1e-5] * people)),
        slope=row(rest.get("slope", [0.0] * people)),
        corr=row(rest.get("corr", [0.0] * people)),
        prior_mean=row(mean),
        prior_sigma=row(rest.get("sigma", [0.1] * people)),
        active=torch.ones(1, people, dtype=torch.bool),
    )


def on_the_line(alpha: float, beta: float, depth: list[float], mean: list[float]) -> MapProblem:
    """People whose labels are scaled copies of prior-sized people standing on the line."""
    factor = [0.8 + 0.1 * (i % 5) for i in range(len(depth))]
    z = [(alpha * d + beta) * f for d, f in zip(depth, factor, strict=True)]
    height = [m * f for m, f in zip(mean, factor, strict=True)]
    return make_problem(depth, z, mean, height)


def assert_same(left: MapSolution, right: MapSolution) -> None:
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        assert torch.allclose(a.double(), b.double(), rtol=1e-12, atol=0, equal_nan=True), field.name


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(50, 900),
    beta=st.floats(-0.4, 3),
    depth=st.lists(st.floats(0.004, 0.018), min_size=3, max_size=9, unique_by=lambda d: round(d, 4)),
)
def test_a_group_made_from_a_true_alpha_and_beta_gives_them_back(alpha: float, beta: float, depth: list[float]) -> None:
    if min(alpha * d + beta for d in depth) < 0.3:
        return
    solution = solve_map(on_the_line(alpha, beta, depth, [1.1 + 0.08 * i for i in range(len(depth))]), CONFIG)
    assert abs(float(solution.alpha[0]) / alpha - 1) < 1e-6
    assert abs(float(solution.beta[0]) - beta) < 1e-6 * alpha
    assert int(solution.num_optimized[0]) == len(depth)


def test_padding_never_changes_a_fit() -> None:
    problem = on_the_line(400, 0.5, [0.006, 0.009, 0.014], [1.6, 1.7, 1.5])
    padded = MapProblem(
        **{
            name: torch.nn.functional.pad(value, (0, 3), value=False if value.dtype == torch.bool else torch.nan)
            for name, value in vars(problem).items()
        }
    )
    plain, wide = solve_map(problem, CONFIG), solve_map(padded, CONFIG)
    cut = dataclasses.replace(wide, active=wide.active[:, :3], rejected_order=wide.rejected_order[:, :3])
    assert_same(plain, cut)


def test_members_of_a_batch_never_decide_for_each_other() -> None:
    calm = on_the_line(400, 0.5, [0.006, 0.009, 0.014], [1.6, 1.7, 1.5])
    wild = make_problem([0.006, 0.007, 0.012], [3, 3, 9], [1.7, 1.7, 1.7], [2.6, 1.7, 2.9])
    batch = MapProblem(**{name: torch.cat([value, getattr(wild, name)]) for name, value in vars(calm).items()})
    together = solve_map(batch, CONFIG)
    for index, alone in enumerate((solve_map(calm, CONFIG), solve_map(wild, CONFIG))):
        row = MapSolution(**{name: value[index : index + 1] for name, value in vars(together).items()})
        assert_same(alone, row)


def test_alpha_is_never_flatter_than_the_bodies_in_the_crowd() -> None:
    rising = make_problem([0.006, 0.009, 0.014], [3, 3.1, 3.2], [1.7] * 3, [1.7] * 3, slope=[300] * 3, corr=[0.9] * 3)
    solution = solve_map(rising, CONFIG)
    assert float(solution.alpha[0]) == 300


def test_a_correlation_of_exactly_one_half_does_not_count() -> None:
    problem = make_problem([0.006, 0.009], [3, 4], [1.7] * 2, [1.7] * 2, slope=[300, 100], corr=[0.5, 0.6])
    assert float(lower_bound(problem, CONFIG)[0]) == 100
    assert float(lower_bound(problem, SolverConfig(internal_constraint=False))[0]) == CONFIG.default_alpha_min


def test_the_tallest_is_set_aside_until_nobody_is_too_tall() -> None:
    problem = on_the_line(400, 0.5, [0.006, 0.008, 0.010, 0.014], [1.6, 1.7, 1.5, 1.6])
    giant = dataclasses.replace(
        problem,
        height=problem.height * torch.tensor([[1, 1, 1.9, 1]], dtype=torch.float64),
        prior_sigma=torch.tensor([[0.1, 0.1, 5.0, 0.1]], dtype=torch.float64),
    )
    solution = solve_map(giant, CONFIG)
    assert solution.rejected_order[0].tolist() == [-1, -1, 0, -1]
    kept = new_heights(giant, solution.alpha, solution.beta)[solution.active]
    assert float(kept.max()) <= CONFIG.max_height
    assert int(solution.num_optimized[0]) == 3


def test_two_people_alone_are_applied_but_do_not_count_as_optimised() -> None:
    solution = solve_map(on_the_line(400, 0.5, [0.006, 0.014], [1.6, 1.7]), CONFIG)
    assert int(solution.num_optimized[0]) == 0
    assert solution.active.all()


def test_equal_depths_without_spread_have_no_line_instead_of_one_divided_by_zero() -> None:
    problem = make_problem([0.01] * 3, [3, 4, 5], [1.7] * 3, [1.6, 1.7, 1.8], depth_std=[0.0] * 3)
    assert solve_map(problem, CONFIG).alpha.isnan().all()


def test_an_empty_group_has_no_line() -> None:
    problem = on_the_line(400, 0.5, [0.006, 0.014], [1.6, 1.7])
    empty = dataclasses.replace(problem, active=torch.zeros_like(problem.active))
    solution = solve_map(empty, CONFIG)
    assert solution.alpha.isnan().all()
    assert int(solution.num_optimized[0]) == 0


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_people_never_changes_a_fit(order: list[int]) -> None:
    torch.manual_seed(3)
    depth = (0.004 + 0.012 * torch.rand(6)).tolist()
    problem = make_problem(depth, [3, 4, 5, 6, 4, 3], [1.7, 1.1, 1.5, 1.6, 1.7, 0.9], [1.6, 1.7, 2.0, 1.7, 1.5, 1.9])
    shuffled = MapProblem(**{name: value[:, order] for name, value in vars(problem).items()})
    plain, mixed = solve_map(problem, CONFIG), solve_map(shuffled, CONFIG)
    assert torch.allclose(plain.alpha, mixed.alpha, rtol=1e-10)
    assert torch.equal(plain.rejected_order[:, order], mixed.rejected_order)
