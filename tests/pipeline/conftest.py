"""Makes the helpers of this folder importable, which importlib mode leaves off the path; what compression's
tests share: data, a tiny model and its calibration rows. A file with others has fixtures of the same names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cogumi.store import Artifact

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Micro questions and answers, four of each kind."""
    from micro_stages import micro_data

    return micro_data(tmp_path_factory.mktemp("data") / "d", 4)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, data: Artifact) -> Artifact:
    """Two layers of width 64 with fresh weights; see ``compress_models.tiny``."""
    from compress_models import tiny

    return tiny(tmp_path_factory.mktemp("model"), data)


@pytest.fixture(scope="session")
def rows(data: Artifact, model: Artifact) -> list[list[int]]:
    """Token ids that ``model`` is calibrated on."""
    from compress_models import LENGTH, SAMPLES

    from pipeline.compression.calibration_rows import calibration_rows

    return calibration_rows(data, model.path, samples=SAMPLES, max_length=LENGTH, seed=7)
