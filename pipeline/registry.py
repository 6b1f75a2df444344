"""Stages by name, each imported when first asked for: ``cogumi plan`` loads those of its profile only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from cogumi.stage import Stage


class StageRegistry(Mapping[str, Stage[Any]]):
    """Stages by name; ``places`` says of each where it stands, as ``package.module:NAME``.

    Names are known without any import. To go through the stages themselves imports all of them.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._found: dict[str, Stage[Any]] = {}

    def __getitem__(self, name: str) -> Stage[Any]:
        """Return the stage of this name; raises ``KeyError`` where there is none."""
        if name not in self._found:
            module, _, attribute = self._places[name].partition(":")
            stage: Stage[Any] = getattr(import_module(module), attribute)
            if stage.name != name:
                raise ValueError(f"{self._places[name]} is the stage {stage.name}, registered as {name}")
            self._found[name] = stage
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a stage of this name, without importing it."""
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order registered."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return how many stages there are."""
        return len(self._places)
