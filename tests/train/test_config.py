"""The knobs of training: presets, files, overrides, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.config import ConfigError
from dto_pipeline.train.config import load_train_config, train_config_from_dict


def test_the_presets_differ_in_named_knobs_only() -> None:
    ours, paper = (load_train_config(None, [f"loss.preset={name}"]).to_dict() for name in ("ours", "paper"))
    differing = {f"{room}.{key}" for room, knobs in ours.items() for key in knobs if knobs[key] != paper[room][key]}
    assert differing == {
        "loss.preset",
        "loss.pose_distance",
        "model.queries_from",
        "loss.confidence_over_queries",
        "loss.sum_fov",
        "loss.pair_sigma",
        "model.principal_point",
    }


def test_a_knob_of_ones_own_stands_above_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("loss: {preset: paper, pair_sigma: 0.5}\naugment: {flip: 0}\n")
    config = load_train_config(file, ["loss.relative_metric=0", "loop.rate=1e-4"])
    assert config.loss.pair_sigma == 0.5
    assert config.loss.pose_distance == "axis_angle"
    assert config.loss.relative_metric == 0.0
    assert config.augment.flip == 0.0
    assert config.loop.rate == 1e-4


def test_a_config_survives_being_written_down() -> None:
    config = load_train_config(None, ["loss.preset=paper", "model.queries=7"])
    assert train_config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.presett=paper", "unknown key loss.presett"),
        ("los.preset=paper", "unknown config room 'los'"),
        ("loss.preset=theirs", "choose from"),
        ("model.betas=12", "choose from"),
        ("model.width=70", "multiple of"),
        ("data.input_size=100", "no multiple of encoder.patch"),
        ("loop.steps=0", "at least 1"),
        ("loop.encoder_rate=0", "the encoder is untrained"),
        ("loop.rate=fast", "must be float"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(None, [override])
