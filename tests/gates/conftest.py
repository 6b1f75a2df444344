"""Makes ``gate_memory`` importable: pytest's importlib mode leaves test folders off the path."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A busy machine is no failure.
settings.register_profile("gates", deadline=None)
settings.load_profile("gates")
