"""The depth benchmark: its arithmetic, and that it measures what it says."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForDepthEstimation

from dto_pipeline.config import DepthConfig, PipelineConfig
from dto_pipeline.lab.bench_depth import WINDOWS, DepthBenchReport, depth_flops, run_depth_bench, time_network
from dto_pipeline.models.depth_anything import DepthNetwork
from tests.tiny_models import save_depth_anything


@pytest.mark.parametrize(("height", "width"), [(56, 84), (42, 70), (98, 56)])
def test_operations_counted_from_the_config_are_those_the_network_does(tmp_path: Path, height: int, width: int) -> None:
    network = AutoModelForDepthEstimation.from_pretrained(
        save_depth_anything(tmp_path / "tiny"), attn_implementation={"backbone_config": "eager"}
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, height, width))
    assert depth_flops(network.config, height, width) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_large_network_costs_what_is_known_of_it() -> None:
    from transformers import DepthAnythingConfig, Dinov2Config

    backbone = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=1024, neck_hidden_sizes=[256, 512, 1024, 1024],
        fusion_hidden_size=256, head_hidden_size=32,
    )  # fmt: skip
    assert depth_flops(config, 518, 686) / 1e12 == pytest.approx(1.8, rel=0.1)


def test_a_benchmark_reports_both_ways_and_every_stage(tmp_path: Path) -> None:
    depth = DepthConfig(model=str(save_depth_anything(tmp_path / "tiny")), short_side=28)
    report = run_depth_bench(images=2, repeats=1, config=PipelineConfig(depth=depth))
    assert {"decode", "masks", "depth", "rasterizer", "evidence", "solver", "write"} <= report.stage_ms.keys()
    assert (report.images, report.windows, report.network_size) == (WINDOWS * 4, WINDOWS, (28, 42))
    assert 0 < report.busy <= 1
    assert 0 < report.share_of_peak < 1
    assert {"MainThread", "looking_0", "decode_0"} <= report.thread_busy.keys()
    assert all(0 < busy <= 1 for busy in report.thread_busy.values())
    assert "images/s" in report.as_table()


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


def test_ratios_are_those_of_the_figures() -> None:
    report = DepthBenchReport(
        images=10, windows=16, device="x", model="m", network_size=(518, 686), batch=8, alone_per_s=200.0,
        end_to_end_per_s=190.0, busy=0.9, tflop_per_image=1.8, peak_tflops=800.0, stage_ms={}, thread_busy={},
    )  # fmt: skip
    assert report.overlap == 0.95
    assert report.share_of_peak == pytest.approx(0.45)
