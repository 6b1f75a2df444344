"""Binding a profile's steps to the registered stages: settings, attempts and inputs, checked before work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cogumi.errors import UsageError, nearest
from cogumi.profile import Profile, StageStep
from cogumi.stage import Settings, Stage
from cogumi.strict_yaml import explain


def named_in(value: Any) -> list[str]:
    """Return every string in a settings value: how a stage's settings name its teachers."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in named_in(item)]
    if isinstance(value, Sequence):
        return [name for item in value for name in named_in(item)]
    return []


def settings_of(step: StageStep, stage: Stage[Any], attempt: int) -> Settings:
    """Return a step's settings for one attempt; raises ``UsageError`` naming the step and the key."""
    document = dict(step.settings)
    if step.attempts:
        document = merge(document, step.attempts[attempt - 1])
    try:
        settings: Settings = stage.settings.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"steps.{step.id}.settings: {explain(error, stage.settings)}") from None
    return settings


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``; mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def feeding(profile: Profile, names: Sequence[str]) -> list[StageStep]:
    """Return these stages and all that they are made from, in the profile's order."""
    found: list[StageStep] = []
    wanted = set(names)
    for step in reversed(profile.steps):
        if isinstance(step, StageStep) and step.id in wanted:
            found.insert(0, step)
            wanted.update(step.inputs.values())
    return found


def check_stages(profile: Profile, stages: Mapping[str, Stage[Any]]) -> None:
    """Raise ``UsageError`` when a step names an unknown stage, input or setting: before anything is spent."""
    for step in profile.steps:
        if not isinstance(step, StageStep):
            continue
        if step.uses not in stages:
            raise UsageError(f"steps.{step.id}: no stage {step.uses!r}{nearest(step.uses, sorted(stages))}")
        stage = stages[step.uses]
        known = [*stage.inputs, *stage.optional_inputs]
        for name in step.inputs:
            if name not in known:
                raise UsageError(f"steps.{step.id}: {step.uses} has no input {name!r}{nearest(name, known)}")
        for name in stage.inputs:
            if name not in step.inputs:
                raise UsageError(f"steps.{step.id}: {step.uses} needs the input {name!r}")
        for attempt in range(1, max(1, len(step.attempts)) + 1):
            settings_of(step, stage, attempt)
