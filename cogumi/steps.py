"""Binding a profile's steps to the registered stages: settings, attempts and inputs, checked before work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def step_named(profile: Profile, name: str, *, last: bool) -> str:
    """Return the id of the step that is meant: by its id, else its stage's name or family, else the plan.

    Of several, as the steps of a family are, the last or the first. Raises ``UsageError`` when none is meant.
    """
    steps = profile.steps
    stages = {step.id: step.uses for step in steps if isinstance(step, StageStep)}
    found = (
        [step.id for step in steps if step.id == name]
        or [step for step, uses in stages.items() if uses == name or uses.startswith(f"{name}.")]
        or [step.id for step in steps if step.plan and step.plan == name]
    )
    if not found:
        families = {uses.partition(".")[0] for uses in stages.values()}
        numbers = {step.plan for step in steps if step.plan}
        known = [*(step.id for step in steps), *sorted({*stages.values(), *families}), *sorted(numbers)]
        raise UsageError(f"profile {profile.profile} has no step {name!r}{nearest(name, known)}")
    return found[-1 if last else 0]


def feeding(profile: Profile, names: Iterable[str]) -> list[StageStep]:
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
        if step.beside is not None:
            _check_beside(profile, step, stages)


def _check_beside(profile: Profile, step: StageStep, stages: Mapping[str, Stage[Any]]) -> None:
    other = next(found for found in feeding(profile, [step.beside or ""]) if found.id == step.beside)
    where = f"steps.{step.id}.beside"
    if other.id in (found.id for found in feeding(profile, step.inputs.values())):
        raise UsageError(f"{where}: {step.id} is made from {other.id} and cannot run beside it")
    if other.beside is not None:
        raise UsageError(f"{where}: {other.id} runs beside {other.beside} itself; name {other.beside}")
    for uses in (step.uses, other.uses):
        if stages[uses].teachers:
            raise UsageError(f"{where}: {uses} asks teachers, and such a stage runs beside no other")
