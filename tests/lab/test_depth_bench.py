"""The depth benchmark: its arithmetic, and that it measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForDepthEstimation

from dto_pipeline.commands.bench import place_shard
from dto_pipeline.config import DepthConfig, PipelineConfig
from dto_pipeline.lab.bench_depth import DepthBenchReport, depth_flops, run_depth_bench
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
    report = run_depth_bench(place_shard, images=2, repeats=1, config=PipelineConfig(depth=depth))
    assert {"decode", "masks", "depth", "rasterizer", "evidence", "solver", "write"} <= report.stage_ms.keys()
    assert report.network_size == (28, 42)
    assert 0 < report.busy <= 1.05
    assert 0 < report.share_of_peak < 1
    assert "images/s" in report.as_table()


def test_ratios_are_those_of_the_figures() -> None:
    report = DepthBenchReport(10, "x", "m", (518, 686), 8, 200.0, 190.0, 1.8, 800.0, {"depth": 4.5, "masks": 1.0}, 5.0)
    assert report.overlap == 0.95
    assert report.share_of_peak == pytest.approx(0.45)
    assert report.busy == 0.9
