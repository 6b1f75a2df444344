"""Makes the helpers of the other test folders importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for folder in ("evals", "pipeline"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 0.1 M parameters, trained to repeat two words, with a context of 64 tokens."""
    from tiny_models import make_tiny

    out = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny(out, tmp_path_factory.mktemp("scratch"))
    return out
