"""What two models' figures must share before they are compared."""

from __future__ import annotations

import numpy as np
import pytest

from gates.comparable import differing, distinct, speeds_differ_by, stacks_changed
from gates.compare import macro_score
from gates.intervals import mean_bounds

STACK = {"backend": "hf", "torch": "2.11", "dtype": "bf16", "threads": "2"}
HERE = {"machine": "one", "stack": STACK}


def test_differing_names_the_keys() -> None:
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}]) == ["b", "c"]
    assert differing([{"a": 1}, {"a": 2}], ignored=["a"]) == []
    assert distinct([HERE, dict(HERE), {}]) == [HERE, {}]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (HERE, None),
        ({**HERE, "stack": {**STACK, "dtype": "f16", "threads": "1"}}, None),
        ({**HERE, "machine": "two"}, "machines differ (one; two)"),
        ({**HERE, "stack": {"backend": "gguf", "torch": "2.11"}}, "stacks differ (backend)"),
        ({"stack": STACK}, "the machine of older evidence is not recorded"),
    ],
)
def test_speeds_are_compared_on_one_machine_and_stack(other: dict[str, object], why: str | None) -> None:
    assert speeds_differ_by([HERE], [other]) == why


def test_a_change_of_stack_is_named() -> None:
    later = {"machine": "two", "stack": {**STACK, "torch": "2.12"}}
    assert stacks_changed([HERE, later]) == ["machine", "torch"]


def test_a_macro_score_is_the_mean_of_tasks_and_of_their_bounds() -> None:
    known, whole = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0])
    found = macro_score([(known, 100), (whole, 2)], alpha=0.1)
    lower, upper = mean_bounds(known, 100, 0.05)
    assert found.tasks == ((0.75, lower, upper), (0.5, 0.5, 0.5))
    assert (found.score, found.lower, found.upper) == (0.625, (lower + 0.5) / 2, (upper + 0.5) / 2)
