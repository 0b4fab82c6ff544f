"""What all tests share: one thread per process (two cores, many tests) and the stand-in body, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from dto_pipeline.models.body import BodyModel, load_body

torch.set_num_threads(1)
settings.register_profile("patient", deadline=None)  # property tests share their cores with other work
settings.load_profile("patient")


@pytest.fixture(scope="session")
def body() -> BodyModel:
    return load_body("demo")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return Path(__file__).parent / "golden"
