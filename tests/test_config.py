"""Configs: unknown keys are refused, equal configs hash equal, and only what changes labels is hashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.config import PipelineConfig, config_from_dict, load_config
from dto_pipeline.config_tree import ConfigError, describe_difference
from dto_pipeline.run.identity import hash_settings


def test_a_config_survives_the_way_through_a_dict() -> None:
    config = load_config(None, ["solver.max_height=2.2", "prior.age_limits=[2, 7, 14]", "run.workers=5"])
    assert config_from_dict(config.to_dict()) == config


def test_overrides_go_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("solver:\n  max_height: 2.3\n  max_rounds: 7\n")
    config = load_config(path, ["solver.max_height=2.2"])
    assert (config.solver.max_height, config.solver.max_rounds, config.solver.min_corr) == (2.2, 7, 0.5)


def test_how_work_is_moved_never_changes_the_hash_but_a_label_knob_does() -> None:
    def settings(*overrides: str) -> str:
        return hash_settings(load_config(None, overrides).to_dict(), {"body": "0" * 64})

    plain = settings()
    assert settings("run.workers=64", "run.device=cuda") == plain
    assert settings("solver.max_height=2.2") != plain


def test_differences_are_named_option_by_option() -> None:
    other = load_config(None, ["solver.max_height=2.2"])
    assert describe_difference(PipelineConfig().to_dict(), other.to_dict()) == ["solver.max_height: 2.1 -> 2.2"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("solver.speed=3", "unknown key solver.speed"),
        ("kitchen.sink=3", "unknown config section 'kitchen'"),
        ("solver.max_height=tall", "solver.max_height must be float, found 'tall'"),
        ("solver.max_rounds=2.5", "solver.max_rounds must be int"),
        ("prior.age_limits=[3, 8]", "needs 3 values"),
        ("solver.max_height", "section.key=value"),
        ("run.workers=-1", "run.workers"),
        ("prior.age_prior=1", "prior.age_prior must be bool"),
        ("depth.unit=loud", "depth.unit is 'loud'; choose from"),
        ("depth.unit=0", "give a positive number"),
        ("depth.unit=1e300", "give a positive number"),
        ("depth.scale=0", "depth.scale is 0.0; expected a finite number of more than 0"),
        ("depth.scale=.inf", "depth.scale is inf; expected a finite number of more than 0"),
        ("evidence.far_scale=.inf", "evidence.far_scale is inf"),
        ("joint.depth_sigma=-0.02", "joint.depth_sigma is -0.02; expected a finite number of at least 0"),
        ("prior.mean=[.8, 1.1, 1.5, 1.6, .inf, 1.7]", "prior.mean is"),
        ("solver.max_height=" + "9" * 400, "solver.max_height must be float, found 999"),
        ("evidence.render_max_side=0", "evidence.render_max_side is 0; expected a finite number of at least 1"),
        ("masks.short_side=0", "masks.short_side is 0; expected a finite number of at least 32"),
        ("joint.anybody_weight=2", "joint.anybody_weight is 2.0; expected 0 to 0.999"),
        ("prior.age_limits=[15, 8, 3]", "prior.age_limits is 15, 8, 3; expected ascending numbers"),
        ("joint.unknown_age_below=[0.09, 0.045, 0.015]", "joint.unknown_age_below is 0.09, 0.045, 0.015; expected asc"),
        (
            "joint.growth_ages=[1, 1, 1, 1]",
            "joint.growth_ages is 1, 1, 1, 1; expected ascending numbers, all different",
        ),
        ("joint.growth_ages=[0, 5, 11, 17]", "expected a finite number of more than 0"),
        ("joint.blurred_corr=[0.4, 0.2]", "joint.blurred_corr is 0.4, 0.2; expected ascending numbers, all different"),
        ("prior.female_below=0.8", "prior.female_below is 0.8, prior.male_from 0.67; expected the lower"),
        ("joint.tail_weights=[0, 0, 0]", "joint.tail_weights have the sum 0; expected a finite one of more than 0"),
        ("joint.blurred_level_weights=[0, 0, 0, 0]", "joint.blurred_level_weights have the sum 0"),
        ("run.gpus_per_worker=-2", "run.gpus_per_worker is -2.0; expected a finite number of at least -1"),
    ],
)
def test_what_cannot_be_used_is_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[").replace("(", r"\(")):
        load_config(None, [override])


@pytest.mark.parametrize(
    "content",
    [
        b"PAR1\x15\x04\x15\x10\x15\xb6PAR1",
        b"\xff\xfes\x00o\x00",
        b"[" * 20_000,
        b"solver: [1, 2]\n",
        b"solver: fast\n",
        b"solver: 7\n",
        b"[solver]\n",
        b"7: {a: 1}\n",
        b"solver: {7: 1}\n",
        b"solver: {max_height: [[2.1]]}\n",
        b"solver: {max_height: .nan}\n",
        b"solver: {mode: 2020-13-45}\n",
        b"? {a: 1}\n: 2\n",
    ],
)
def test_a_config_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.parquet|solver\.m"):
        load_config(path)


@pytest.mark.parametrize("override", ["solver.mode=" + "[" * 5000, "run.workers=1", "solver.a.b=1"])
def test_an_override_that_is_nested_too_deep_or_in_a_value_is_refused(override: str) -> None:
    overrides = ["run.workers.x=1", "run.workers=2", "run.workers.y=1"] if override == "run.workers=1" else [override]
    with pytest.raises(ConfigError):
        load_config(None, overrides)
