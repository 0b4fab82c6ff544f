"""The benches: the plain loop computes what the batched code does, and each measures what it says."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from depth_tiny import build_large_network
from transformers import AutoModelForDepthEstimation

from dto_pipeline.collate import collate_scenes
from dto_pipeline.config import DepthConfig, PipelineConfig
from dto_pipeline.lab.bench import (
    COMPARED,
    STAGES,
    WINDOWS,
    PlainBody,
    depth_flops,
    draw_people,
    measure_people,
    run_bench,
    run_depth_bench,
    time_network,
)
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.optimizer import SceneOptimizer
from tests.crowds import Stander, make_scene
from tests.tiny_models import save_depth_anything


def test_operations_are_counted_and_the_large_network_costs_what_is_known_of_it(tmp_path: Path) -> None:
    with torch.device("meta"):
        large = build_large_network()
    assert depth_flops(large, 518, 686) / 1e12 == pytest.approx(1.8, rel=0.1)
    small = AutoModelForDepthEstimation.from_pretrained(save_depth_anything(tmp_path / "tiny"))
    assert 3 < depth_flops(small, 112, 168) / depth_flops(small, 56, 84) < 6


def test_a_benchmark_reports_both_ways_and_every_stage(tmp_path: Path) -> None:
    depth = DepthConfig(model=str(save_depth_anything(tmp_path / "tiny")), short_side=28)
    found, table = run_depth_bench(2, 1, PipelineConfig(depth=depth))
    assert {"decode", "masks", "depth", "rasterizer", "evidence", "solver", "write"} <= found["stage_ms"].keys()
    assert (found["images"], found["windows"], found["network_size"]) == (WINDOWS * 4, WINDOWS, (28, 42))
    assert 0 < found["busy"] <= 1
    assert found["overlap"] == pytest.approx(found["end_to_end_per_s"] / found["alone_per_s"])
    assert found["share_of_peak"] * found["peak_tflops"] == pytest.approx(
        found["alone_per_s"] * found["tflop_per_image"]
    )
    assert 0 < found["share_of_peak"] < 1
    assert "images/s" in table


def test_the_network_alone_is_timed_without_what_comes_before_it(tmp_path: Path) -> None:
    network = DepthNetwork(
        DepthConfig(source="model", model=str(save_depth_anything(tmp_path / "tiny")), short_side=28)
    )
    seen: list[int] = []

    def compute(inputs: torch.Tensor) -> None:
        seen.append(len(inputs))
        time.sleep(0.01)

    network.compute, network.at_once = compute, 2  # type: ignore[method-assign]
    assert 0.03 <= time_network(network, [np.zeros((30, 45, 3), np.uint8)] * 3, 5) < 0.5
    assert seen == [2, 2, 1]


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
    people = measure_people(scene, (person, z, visible), config)
    for index, found in enumerate(people):
        assert found is not None
        assert found["depth"] == pytest.approx(result.evidence.depth[0, index].tolist(), rel=1e-4)
        assert found["z"] == pytest.approx(result.evidence.z[0, index].tolist(), rel=1e-3)
        assert found["slope"] == pytest.approx(float(result.evidence.slope[0, index]), rel=1e-3)


def test_the_report_holds_every_stage_and_a_ratio() -> None:
    found, table = run_bench(2, 1, PipelineConfig())
    assert set(found["batched"]) == set(STAGES)
    assert set(found["plain"]) == set(COMPARED)
    assert found["ratio"] > 0
    small, large = found["evidence_ms_per_mpx"]
    assert 0 < large < 2 * small  # what 24 Mpx cost a pixel, VGA costs too
    assert "plain loop / batched" in table
