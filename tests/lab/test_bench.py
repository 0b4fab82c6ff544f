"""The benchmark: its plain loop computes what the batched code computes, and its report holds every stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dto_pipeline.collate import collate_scenes
from dto_pipeline.config import PipelineConfig
from dto_pipeline.lab.bench_plain import PlainBody, draw_people, measure_people, solve_groups
from dto_pipeline.lab.bench_stages import COMPARED, STAGES, run_bench
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from tests.crowds import Stander, make_scene


def test_the_plain_loop_and_the_batched_code_compute_the_same(body: BodyModel) -> None:
    config = PipelineConfig()
    rng = np.random.default_rng(0)
    crowd = [Stander(-1.1 + 0.75 * i, 3.0 + 0.5 * i, 1.6 + 0.05 * i, 1.0 + 0.1 * (i % 2)) for i in range(4)]
    scene = make_scene(body, crowd)
    assert scene.disparity is not None
    scene.disparity *= rng.uniform(0.99, 1.01, scene.disparity.shape).astype(np.float32)
    result = SceneOptimizer(body, config)(collate_scenes([scene]))
    plain = PlainBody(body)
    vertices = [plain.vertices(*one) for one in zip(scene.pose, scene.betas, scene.transl, strict=True)]
    exact = body.vertices(*(torch.from_numpy(values) for values in (scene.pose, scene.betas, scene.transl)))
    np.testing.assert_allclose(torch.stack(vertices), exact, atol=1e-5)
    person, z, visible = draw_people(scene, vertices, body, config)
    assert np.abs(visible - result.maps.visible_vertices[0].numpy()).max() <= 2
    people = measure_people(scene, person, z, visible, body, config)
    for index, found in enumerate(people):
        assert found is not None
        assert found.depth == pytest.approx(result.evidence.depth[0, index].tolist(), rel=1e-4)
        assert found.z == pytest.approx(result.evidence.z[0, index].tolist(), rel=1e-3)
        assert found.slope == pytest.approx(float(result.evidence.slope[0, index]), rel=1e-3)
    alpha, beta = solve_groups(people, config)[0]
    assert alpha == pytest.approx(float(result.people.fits.alpha[0, 0]), rel=1e-3)
    assert beta == pytest.approx(float(result.people.fits.beta[0, 0]), abs=1e-2)


def test_the_report_holds_every_stage_and_a_ratio() -> None:
    report = run_bench(images=2, repeats=1)
    assert set(report.batched) == set(STAGES)
    assert set(report.plain) == set(COMPARED)
    assert report.to_json()["ratio"] > 0
    small, large = report.evidence_ms_per_mpx
    assert 0 < large < 2 * small  # what 24 Mpx cost a pixel, VGA costs too
    assert "plain loop / batched" in report.as_table()
