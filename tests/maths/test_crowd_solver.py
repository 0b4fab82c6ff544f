"""The joint solver on crowds small enough to draw: exact lines, invariants, outliers, honest uncertainty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from dto_pipeline.config import CrowdConfig, PriorConfig
from dto_pipeline.maths import line_posterior
from dto_pipeline.maths.crowd_solver import fit_crowds, interval_halfwidth
from dto_pipeline.maths.heights import (
    build_height_mixture,
    build_height_prior,
    class_shares,
    classify_heights,
    summarise_mixture,
)
from dto_pipeline.maths.line_posterior import AFFINE_DEPTH, AFFINE_DISPARITY, line_coefficients, log_distance
from dto_pipeline.maths.paper_solver import CODE
from dto_pipeline.scene import DepthEvidence, GroupFits, SceneBatch
from dto_pipeline.status import PersonStatus

PRIOR, JOINT = PriorConfig(), CrowdConfig()
NAN = torch.nan


def crowd(
    z: list[list[float]],
    height: list[list[float]] | None = None,
    factor: list[list[float]] | None = None,
    age: float = 30.0,
    line: tuple[float, float] = (500.0, 0.0),
    inverse: bool = False,
    error: list[list[float]] | None = None,
    config: CrowdConfig = JOINT,
    usable: torch.Tensor | None = None,
    present: torch.Tensor | None = None,
    ages: torch.Tensor | None = None,
    metric: torch.Tensor | None = None,
    corr: float = 0.6,
) -> GroupFits:
    """Fit people of true distances `z` [m] whose labels are `factor` too large and whose depth errs by `error`.

    line: (alpha, beta) of z = alpha depth + beta, or with `inverse` (a, b) of disparity = a / z + b.
    corr: correlation inside bodies.
    """
    true_z = torch.tensor(z, dtype=torch.float64)
    true_height = torch.full_like(true_z, 1.715) if height is None else torch.tensor(height, dtype=torch.float64)
    scale = torch.ones_like(true_z) if factor is None else torch.tensor(factor, dtype=torch.float64)
    depth = 1 / (line[0] / true_z + line[1]) if inverse else (true_z - line[1]) / line[0]
    depth = depth * (1 + (0 if error is None else torch.tensor(error, dtype=torch.float64)))
    shape = true_z.shape
    usable = torch.ones(shape, dtype=torch.bool) if usable is None else usable
    present = torch.ones(shape, dtype=torch.bool) if present is None else present
    ages = torch.full(shape, age) if ages is None else ages
    label_height, label_z = true_height * scale, true_z * scale
    evidence = DepthEvidence(
        depth=torch.where(usable, depth, NAN)[..., None].expand(*shape, 2),
        z=torch.where(usable, label_z, NAN)[..., None].expand(*shape, 2),
        depth_std=torch.full(shape, 1e-4, dtype=torch.float64),
        slope=torch.full(shape, NAN, dtype=torch.float64),
        corr=torch.full(shape, corr, dtype=torch.float64),
        pixels=torch.full((*shape, 4), 5000),
        bounds=torch.zeros((*shape, 2), dtype=torch.float64),
        ground_row=torch.zeros(shape, dtype=torch.float64),
        usable=usable,
        cut=torch.where(usable, 0, 1),
        group=torch.where(usable, 0, -1),
        unit=torch.ones(len(shape), dtype=torch.float64)[:1].expand(shape[0]),
    )
    unknown = torch.full(shape, NAN)
    mixture = build_height_mixture(label_height, ages, unknown, PRIOR, config)
    table = build_height_prior(label_height, classify_heights(ages, unknown, PRIOR), PRIOR)
    prior = summarise_mixture(mixture, table)
    nothing, size = torch.zeros(shape), torch.ones(shape[0], 2, dtype=torch.int64)
    batch = SceneBatch(
        pose=nothing,
        betas=nothing,
        transl=label_z[..., None].expand(*shape, 3),
        intrinsics=nothing,
        age_years=ages,
        male_prob=unknown,
        present=present,
        masks=nothing,
        disparity=nothing,
        metric=torch.zeros(shape[0], dtype=torch.bool) if metric is None else metric,
        image_size=size,
        map_size=size,
    )
    return fit_crowds(evidence, prior, batch, config, 2.1)


def posterior(fits: GroupFits) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance (B, P, P) and standard deviations (B, P) of z."""
    assert fits.posterior is not None
    covariance = fits.posterior.z_covariance
    return covariance, covariance.diagonal(dim1=-2, dim2=-1).sqrt()


@pytest.mark.parametrize("factor", [1.0, 0.3, 3.0])
def test_metres_improve_the_distance_of_people_of_unknown_height_and_wrong_ones_are_outvoted(factor: float) -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(3, 9, (200, 3))
    common = np.exp(rng.normal(0, 0.06, (200, 1)))  # people of an image are all taller or shorter than expected
    height = 1.7 * common * np.exp(rng.normal(0, 0.06, z.shape))
    scale = factor * np.exp(rng.normal(0, 0.1, (200, 1)))
    error = (scale - 1).repeat(3, 1)

    def miss(metric: bool) -> float:
        told = torch.full((200,), metric)
        fits = crowd(z.tolist(), height=height.tolist(), line=(500.0, 0.0), error=error.tolist(), metric=told)
        return float(np.abs(np.log(fits.new_z.numpy() / z)).mean())

    if factor == 1:
        assert miss(True) < 0.93 * miss(False)
    else:
        assert miss(True) == pytest.approx(miss(False), rel=0.05)


def test_an_exact_crowd_of_average_people_stands_where_it_should() -> None:
    z = [[3.0, 4.0, 5.5, 7.0, 9.0]]
    fits = crowd(z, factor=[[1.3, 1.0, 0.9, 1.2, 1.1]])
    assert fits.outcome.tolist() == [[CODE[PersonStatus.MOVED]] * 5]
    assert np.allclose(fits.new_z.numpy(), z, rtol=0.03)
    assert np.allclose(fits.new_z.numpy() / fits.new_z[0, 0].item() * 3.0, z, rtol=0.02)  # ratios come from depth


@pytest.mark.parametrize("inverse", [False, True])
def test_an_offset_is_found_and_the_right_model_is_chosen(inverse: bool) -> None:
    config = replace(JOINT, share_sigma=0.5)
    z = [[2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 18.0, 20.0]]
    line = (500.0, 40.0) if inverse else (400.0, 1.2)
    fits = crowd(z, line=line, inverse=inverse, config=config)
    assert fits.posterior is not None
    assert fits.posterior.depth_model.item() == (AFFINE_DISPARITY if inverse else AFFINE_DEPTH)
    assert np.allclose(fits.new_z.numpy(), z, rtol=0.07)
    assert fits.alpha.isnan().all() == inverse


def test_one_wrong_depth_spoils_nobody_else_and_is_not_believed() -> None:
    z = np.array([3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    found = crowd([z.tolist()], error=[[0, 0, 0.8, 0, 0, 0]]).new_z.numpy()[0]
    others = [0, 1, 3, 4, 5]
    assert np.allclose(found[others], z[others], rtol=0.03)
    assert abs(found[2] - 5) < 0.5 * 0.8 * 5  # less than half of what its depth says: it may be a child, or wrong


def test_one_wrong_height_spoils_neither_its_person_nor_the_others() -> None:
    """A child that everybody takes for an adult stands where its depth says."""
    z = [[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]
    fits = crowd(z, height=[[1.7, 1.72, 1.1, 1.7, 1.73, 1.7]], factor=[[1, 1, 1.5, 1, 1, 1]])
    assert np.allclose(fits.new_z.numpy(), z, rtol=0.06)


def test_a_map_too_blurred_to_show_bodies_is_believed_less() -> None:
    z = [[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]
    wrong = [[0, 0, 0.1, 0, -0.1, 0]]
    clear, blurred = (crowd(z, error=wrong, corr=corr) for corr in (0.6, 0.0))
    off, off_blurred = (np.abs(np.log(fits.new_z.numpy() / z)) for fits in (clear, blurred))
    assert off_blurred[0, [2, 4]].max() < 0.9 * off[0, [2, 4]].max()


def test_an_estimated_gender_of_0_86_is_nearly_certain_and_one_of_a_half_is_unknown() -> None:
    def male(estimate: float) -> float:
        return float(class_shares(torch.tensor(40.0).double(), torch.tensor(estimate).double(), PRIOR, JOINT)[-1])

    assert male(0.86) > 0.95
    assert male(0.5) == pytest.approx(0.5)
    assert 1 - JOINT.gender_trust == pytest.approx(2 * male(0.0), abs=1e-4)


def test_depth_that_follows_size_is_found_in_the_image_and_taken_out() -> None:
    """Children are drawn too far: with the ages known, the heights say so together."""
    z = [[3.0, 4.0, 5.0, 6.5, 8.0, 4.5, 5.5, 7.0, 3.5, 6.0]]
    height = [[1.75, 0.95, 1.7, 1.65, 1.0, 1.1, 1.8, 0.9, 0.8, 0.8]]
    ages = torch.tensor([[40.0, 4.0, 30.0, 50.0, 5.0, 6.5, 30.0, 3.5, 1.5, 1.5]])
    error = (np.array(height) / 1.7) ** -0.3 - 1
    found = crowd(z, height=height, ages=ages, error=error.tolist()).new_z
    deaf = replace(JOINT, size_error_probability=0.0)
    taken = crowd(z, height=height, ages=ages, error=error.tolist(), config=deaf).new_z
    off, off_deaf = (np.abs(np.log(got.numpy() / z)) for got in (found, taken))
    assert off.max() < 0.06
    assert off.mean() < 0.3 * off_deaf.mean()


def test_several_wrong_ages_are_outvoted_by_depth() -> None:
    z = [[3.0, 4.0, 5.0, 6.5, 8.0, 4.5, 7.0, 5.5]]
    ages = torch.tensor([[40.0, 4.0, 30.0, 50.0, 30.0, 5.0, 40.0, 25.0]])  # everybody is grown
    doubting = replace(JOINT, wrong_ages_probability=0.5)
    believing = replace(JOINT, wrong_ages_probability=0.0)
    off, believed = (
        np.abs(np.log(crowd(z, ages=ages, config=c).new_z.numpy() / z)).max() for c in (doubting, believing)
    )
    assert off < 0.05
    assert off < 0.7 * believed


def test_without_an_age_a_person_is_an_adult_unless_the_evidence_is_strong() -> None:
    z, ages = [[3.0, 4.0, 5.0, 6.5, 8.0, 4.5]], torch.full((1, 6), torch.nan)
    grown = crowd(z, height=[[1.7, 1.7, 1.7, 1.7, 1.7, 1.7]], ages=ages, error=[[0, 0, -0.1, 0, 0, 0]])
    assert (grown.new_z.numpy() / z * 1.7).min() > 1.55
    child = crowd(z, height=[[1.7, 1.7, 1.0, 1.7, 1.7, 1.7]], factor=[[1, 1, 1.7, 1, 1, 1]], ages=ages)
    assert child.new_z[0, 2].item() == pytest.approx(5.0, rel=0.05)


@given(st.floats(0.3, 14.9), st.floats(1.05, 2.0))
def test_older_children_are_expected_to_be_taller(age: float, factor: float) -> None:
    def expect(years: float) -> float:
        height = torch.tensor(1.7, dtype=torch.float64)
        ages = torch.tensor(years, dtype=torch.float64)
        unknown = torch.tensor(torch.nan)
        mixture = build_height_mixture(height, ages, unknown, PRIOR, replace(JOINT, growth_weight=1.0))
        assert mixture.weight.sum().item() == pytest.approx(1.0)
        prior = build_height_prior(height, classify_heights(ages, unknown, PRIOR), PRIOR)
        return float(summarise_mixture(mixture, prior).mean)

    assert expect(min(15.0, age * factor)) >= expect(age) - 1e-9


def test_nobody_becomes_taller_than_people_are() -> None:
    """Everybody's depth and height agree that they are giants, but for the limit."""
    config = replace(JOINT, anybody_mean=2.4, anybody_weight=0.9)
    fits = crowd([[3.0, 4.0, 5.0]], height=[[2.4, 2.5, 2.6]], config=config)
    height = fits.new_z.numpy() / [3.0, 4.0, 5.0] * [2.4, 2.5, 2.6]
    assert height.max() <= 2.1 + 1e-9
    assert height.max() > 2.0


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_people_changes_nothing(order: list[int]) -> None:
    z, factor = [3.0, 4.5, 5.0, 8.0], [1.2, 1.0, 0.9, 1.4]
    before = crowd([z], factor=[factor])
    after = crowd([[z[i] for i in order]], factor=[[factor[i] for i in order]])
    assert torch.allclose(before.new_z[:, order], after.new_z, rtol=1e-9)
    assert torch.allclose(posterior(before)[0][:, order][:, :, order], posterior(after)[0], rtol=1e-7)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(2.0, 15.0), min_size=4, max_size=4), st.floats(0.6, 1.6))
def test_padding_and_neighbours_in_a_batch_change_nothing(other: list[float], factor: float) -> None:
    z = [3.0, 4.0, 6.0]
    alone = crowd([z])
    both = torch.tensor([[True] * 3 + [False], [True] * 4])
    batched = crowd([[*z, 5.0], other], factor=[[1.0] * 4, [factor] * 4], usable=both, present=both)
    assert torch.allclose(alone.new_z[0], batched.new_z[0, :3], rtol=1e-9)
    assert batched.outcome[0, 3] == CODE[PersonStatus.NOT_RUN]
    assert alone.deviation[0].item() == pytest.approx(batched.deviation[0].item())


def test_two_people_are_compared_by_their_depths() -> None:
    fits = crowd([[3.0, 6.0]], height=[[1.6, 1.85]])  # by heights alone the ratio would be 2 * 1.6 / 1.85 = 1.73
    assert fits.outcome.tolist() == [[CODE[PersonStatus.MOVED]] * 2]
    assert fits.is_optimized.item()
    assert (fits.new_z[0, 1] / fits.new_z[0, 0]).item() > 1.8


def test_one_person_stands_by_its_height_prior() -> None:
    fits = crowd([[4.0]], height=[[1.715]], factor=[[1.2]])
    assert fits.outcome.item() == CODE[PersonStatus.PLACED_BY_PRIOR]
    assert fits.new_z.item() == pytest.approx(4.0, rel=0.05)
    assert not fits.is_optimized.item()


def test_a_person_without_depth_is_placed_with_less_certainty() -> None:
    usable = torch.tensor([[True, True, True, False]])
    fits = crowd([[3.0, 4.0, 5.0, 5.0]], usable=usable)
    sigma = posterior(fits)[1][0]
    assert fits.outcome[0, 3] == CODE[PersonStatus.PLACED_BY_PRIOR]
    assert sigma[3] > 1.2 * sigma[2]


def test_a_depth_that_is_not_finite_costs_its_own_person_only() -> None:
    fits = crowd([[3.0, 4.0, 5.0]], error=[[0.0, 0.0, float("inf")]])
    assert fits.outcome.tolist() == [[CODE[PersonStatus.MOVED]] * 2 + [CODE[PersonStatus.PLACED_BY_PRIOR]]]
    assert torch.allclose(fits.new_z[:, :2], crowd([[3.0, 4.0]]).new_z, rtol=1e-9)


def test_a_height_that_is_not_finite_costs_its_own_scene_only() -> None:
    z = [[3.0, 4.0, 5.0], [3.0, 4.0, 5.0]]
    fits = crowd(z, height=[[1.715, 1.715, float("nan")], [1.715] * 3])
    assert set(fits.outcome[0].tolist()) == {CODE[PersonStatus.NO_FIT]}
    assert torch.allclose(fits.new_z[1], crowd([z[1]]).new_z[0], rtol=1e-9)


def test_intervals_hold_what_they_say_where_the_model_is_true() -> None:
    """Heights and depth errors drawn from the solver's own laws: z, pairs and heights fall inside as often as said."""
    config = replace(JOINT, population_sigma=0.0, label_height_sigma=1e3, anybody_weight=1e-9, deviation_people=1e9)
    config = replace(config, share_sigma=0.01, edge_sigma=0.0, size_sigma=1e-4, temperature=1.0)
    config = replace(config, wrong_ages_probability=0.0, size_error_probability=0.0, unknown_age_below=(0.0, 0.0, 0.0))
    rng = np.random.default_rng(4)
    z = rng.uniform(2.5, 9.0, (300, 5))
    female = rng.random(z.shape) < 0.5
    height = np.where(female, 1.647, 1.784) * np.exp(rng.normal(0, np.where(female, 0.0707 / 1.647, 0.0759 / 1.784)))
    width = rng.choice(config.tail_widths, z.shape, p=np.array(config.tail_weights) / sum(config.tail_weights))
    level = rng.choice(config.noise_levels, (300, 1), p=config.noise_level_weights)
    error = np.expm1(rng.normal(0, config.depth_sigma * width * level))
    fits = crowd(z.tolist(), height.tolist(), error=error.tolist(), config=config)
    covariance, sigma = (value.numpy() for value in posterior(fits))
    miss = fits.new_z.numpy() - z
    apart = (miss[:, 0] - miss[:, 1]) / np.sqrt(covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1])
    for normalised, within in ((miss / sigma, 0.03), (apart, 0.08)):  # pairs have the heavy tails of depth alone
        for reach, share in ((0.674, 0.5), (1.282, 0.8), (1.960, 0.95)):
            assert np.mean(np.abs(normalised) < reach) == pytest.approx(share, abs=within)


def test_intervals_of_z_are_as_wide_as_a_normal_laws_in_the_middle_and_wider_for_high_levels() -> None:
    levels = np.array([0.0, 0.2, 0.5, 0.8, 0.95, 0.99])
    width = np.array([interval_halfwidth(level) for level in levels])
    normal = norm.ppf((1 + levels) / 2)
    assert width[0] == 0
    assert width[2] == pytest.approx(normal[2], rel=0.01)
    assert (np.diff(width[1:] / normal[1:]) > 0).all()
    assert 2 * t.cdf(width / 0.94, 6) - 1 == pytest.approx(levels)


def test_people_unlike_their_priors_are_less_sure_than_people_who_fit_them() -> None:
    """Men of 1.715 m on the line, and as many who are taller and shorter by turns: the depth is as good."""
    z = np.array([[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    even = crowd(z.tolist())
    uneven = crowd(z.tolist(), height=(1.715 + 0.12 * np.array([[1, -1, 1, -1, 1, -1]])).tolist())
    assert (even.deviation < uneven.deviation).all()
    assert (posterior(uneven)[1] / uneven.new_z > 1.1 * posterior(even)[1] / even.new_z).all()


def test_the_more_people_lack_an_age_the_less_sure_all_distances_are_but_not_their_order() -> None:
    """Adults either way, so that only what nobody knows of the population differs."""
    config = replace(JOINT, unknown_age_below=(0.0, 0.0, 0.0))
    found = []
    for unknown in range(4):
        ages = torch.tensor([[NAN] * unknown + [30.0] * (3 - unknown)])
        covariance = posterior(crowd([[4.0, 4.0, 4.0]], ages=ages, config=config))[0][0]
        found.append([covariance[0, 0].item(), (covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]).item()])
    variance, apart = np.array(found).T
    assert (np.diff(variance) > 0).all()
    assert variance[3] > 1.3 * variance[0]
    assert apart == pytest.approx(apart[0], rel=0.01)


def test_both_lines_are_one_where_there_is_no_offset() -> None:
    scale, share = torch.tensor(1.3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    depth = torch.tensor([-0.5, 0.0, 0.7], dtype=torch.float64)
    for model in (AFFINE_DEPTH, AFFINE_DISPARITY):
        log_z, elasticity = log_distance(scale, share, depth, torch.tensor(model))
        assert torch.allclose(log_z, scale + depth)
        assert torch.allclose(elasticity, torch.ones(3, dtype=torch.float64))


@given(st.floats(0.5, 3.0), st.floats(0.6, 1.4), st.floats(0.001, 0.05), st.floats(-0.4, 0.4))
def test_the_coefficients_of_a_line_are_the_line(scale: float, share: float, typical: float, away: float) -> None:
    values = [torch.tensor(x, dtype=torch.float64) for x in (scale, share, typical, away)]
    depth = typical * np.exp(away)
    for model in (AFFINE_DEPTH, AFFINE_DISPARITY):
        log_z, _ = log_distance(values[0], values[1], values[3], torch.tensor(model))
        slope, offset = line_coefficients(values[0], values[1], values[2], torch.tensor(model))
        found = slope * depth + offset if model == AFFINE_DEPTH else 1 / (slope / depth + offset)
        assert found.item() == pytest.approx(log_z.exp().item(), rel=1e-9)


@pytest.mark.slow
def test_the_refined_grid_agrees_with_a_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight crowds of people unlike their labels and each other, a few of them with gross errors, with an offset."""
    rng = np.random.default_rng(3)
    z = rng.uniform(2.0, 14.0, (8, 5))
    height = rng.choice([0.8, 1.1, 1.45, 1.6, 1.75, 1.9], (8, 5))
    compare_with_a_dense_grid(z, height, (0.03 * rng.standard_t(2, (8, 5))).clip(-0.5, 0.5), monkeypatch)


def test_many_people_determine_a_line_more_narrowly_than_the_first_grids_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    z = np.exp(rng.uniform(np.log(3), np.log(20), (1, 40)))
    compare_with_a_dense_grid(z, rng.normal(1.7, 0.07, z.shape), 0.02 * rng.standard_t(3, z.shape), monkeypatch)


def test_on_a_cpu_only_the_fits_that_need_it_are_refined_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """All were, as often as the one of a batch that needed it most: 80 % more time for crowds of forty."""
    sizes, refine = list[int](), line_posterior._refined_grid

    def counted(mean: torch.Tensor, *others: object) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(mean))
        return refine(mean, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(line_posterior, "_refined_grid", counted)
    z = np.exp(np.random.default_rng(1).uniform(np.log(3), np.log(20), (1, 40)))
    crowd(z.tolist(), error=(0.02 * np.cos(9 * z)).tolist(), line=(480.0, 8.0), inverse=True)
    *zooms, _ = sizes  # the last are the grids of all noise levels
    assert zooms[:1] == [6]
    assert 0 < min(zooms) < 6


def compare_with_a_dense_grid(
    z: np.ndarray, height: np.ndarray, error: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = (z.tolist(), height.tolist())
    quick = crowd(*people, error=error.tolist(), line=(480.0, 8.0), inverse=True)
    for name, size in (("_FIRST_GRID", (121, 41)), ("_ZOOM_GRID", (61, 41)), ("_LAST_GRID", (61, 41))):
        monkeypatch.setattr(line_posterior, name, size)
    dense = crowd(*people, error=error.tolist(), line=(480.0, 8.0), inverse=True)
    sigma = posterior(dense)[1]
    assert ((quick.new_z - dense.new_z) / sigma).abs().max() < 0.1  # standard deviations
    assert (posterior(quick)[1] / sigma - 1).abs().max() < 0.1


@given(st.floats(0.3, 80.0), st.floats(0.0, 1.0))
def test_class_shares_are_probabilities_and_follow_age(age: float, male: float) -> None:
    share = class_shares(torch.tensor(age).double(), torch.tensor(male).double(), PRIOR, JOINT)
    assert share.sum().item() == pytest.approx(1.0)
    assert (share >= 0).all()
    certain = min(abs(np.log(age / limit)) for limit in PRIOR.age_limits) > 0.6
    if certain and age < 15:
        assert share.argmax().item() == np.searchsorted(PRIOR.age_limits, age)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_comes_in_nothing_raises_and_who_is_placed_has_a_place_and_a_sigma(data: st.DataObject) -> None:
    def rows(values: st.SearchStrategy[float]) -> list[list[float]]:
        return data.draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=2, max_size=2))

    fits = crowd(
        rows(st.floats(0.02, 3000)),
        rows(st.floats(0.05, 7)),
        factor=rows(st.floats(0.01, 50)),
        error=rows(st.sampled_from([0.0, 0.0, -0.999, 1e6, float("nan")])),
        age=data.draw(st.sampled_from([0.0, 0.01, 5.0, 30.0, 300.0, float("nan")])),
    )
    placed = (fits.outcome == CODE[PersonStatus.MOVED]) | (fits.outcome == CODE[PersonStatus.PLACED_BY_PRIOR])
    assert (fits.new_z[placed] > 0).all()
    assert (posterior(fits)[1][placed] > 0).all()
    assert fits.posterior is not None
    assert fits.posterior.height_sigma[placed].isfinite().all()
