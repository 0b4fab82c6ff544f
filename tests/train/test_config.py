"""The options of training: presets, files, overrides, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.config_tree import ConfigError
from dto_pipeline.train.config import load_train_config, train_config_from_dict


def test_the_presets_differ_in_named_knobs_only() -> None:
    ours, paper = (load_train_config(None, [f"loss.preset={name}"]).to_dict() for name in ("ours", "paper"))
    differing = {
        f"{room}.{key}" for room, options in ours.items() for key in options if options[key] != paper[room][key]
    }
    switches = {f"{section}.as_published" for section in ("model", "loss", "augment")}
    assert differing == {"loss.preset", *switches, "loss.pair_sigma", "loop.warm_up", "loop.last_rate"}


def test_a_knob_of_ones_own_stands_above_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("loss: {preset: paper, pair_sigma: 0.5}\naugment: {flip: 0}\n")
    config = load_train_config(file, ["loss.relative_metric=0", "loop.rate=1e-4"])
    assert config.loss.pair_sigma == 0.5
    assert config.loss.as_published
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
        ("los.preset=paper", "unknown config section 'los'"),
        ("loss.preset=theirs", "choose from"),
        ("model.betas=12", r"choose from \(10, 11\)"),
        ("model.width=70", "no multiples of"),
        ("data.input_size=100", "expected a multiple of 56"),
        ("encoder.layers=65", "expected 1 to 64"),
        ("data.trust=[2d]", "data.trust has 1 entries"),
        ("loop.steps=0", "expected a finite number of at least 1"),
        ("loop.encoder_rate=0", "the encoder is untrained"),
        ("loop.rate=fast", "must be float"),
        ("loop.clip=0", "expected a finite number of more than 0"),  # 0 is not "off": it made all gradients 0
        ("data.min_joints=46", "expected 1 to 45"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(None, [override])


@pytest.mark.parametrize("preset", [{}, [], None, 3, "paperr"])
def test_a_preset_that_is_no_name_is_refused(preset: object) -> None:
    with pytest.raises(ConfigError, match=r"loss\.preset is .*; choose from"):
        train_config_from_dict({"loss": {"preset": preset}})
