from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cogumi.errors import CogumiError, UsageError
from cogumi.profile import load_profile, parse_profile, profile_names
from cogumi.steps import check_stages, merge
from gates.spec import load_gate
from pipeline import all_stages


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_fit_the_stages_and_gates(name: str) -> None:
    profile = load_profile(name)
    assert profile.profile == name
    check_stages(profile, all_stages())
    for gate in profile.gate_names():
        load_gate(gate)


GOOD: dict[str, Any] = {
    "profile": "p",
    "title": "t",
    "teachers": {"t": {"api": "openai", "model": "m"}},
    "references": {"gpt-4": {"teacher": "t"}},
    "steps": [
        {"id": "a", "uses": "stage.a"},
        {"id": "b", "uses": "stage.b", "inputs": {"data": "a"}, "attempts": [{"steps": 1}, {"steps": 2}]},
        {"id": "g", "gate": "phase1", "artifact": "b", "retry": "b"},
    ],
}


def test_a_good_profile_is_read() -> None:
    assert [step.id for step in parse_profile(GOOD, "p").steps] == ["a", "b", "g"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"titel": "x"}, "unknown key titel (did you mean 'title'?)"),
        (
            {"steps": [{"id": "a", "uses": "s", "setings": {}}]},
            "unknown key setings (did you mean 'settings'?)",
        ),
        ({"steps": [{"id": "a"}]}, "exactly one of uses, measure, gate"),
        ({"steps": [{"id": "a", "uses": "s"}, {"id": "a", "uses": "s"}]}, "two steps are called 'a'"),
        ({"steps": [{"id": "a", "uses": "s", "inputs": {"data": "z"}}]}, "no earlier stage is called 'z'"),
        ({"steps": ["a"]}, "a mapping is expected"),
        ({"teachers": {"t": {"api": "openai", "model": "m", "key": "sk-1"}}}, "unknown key teachers.t.key"),
        ({"teachers": {"t": {"api": "grpc", "model": "m"}}}, "teachers.t.api"),
        ({"references": {"gpt-4": {"teacher": "tt"}}}, "no teacher 'tt' (did you mean 't'?)"),
        ({"references": {"gpt-4": {}}}, "give either rows or teacher"),
        ({"seed": "one"}, "seed"),
    ],
)
def test_a_wrong_profile_is_one_line_that_names_the_place(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as found:
        parse_profile({**GOOD, **change}, "mine.yaml")
    assert told in str(found.value)
    assert "mine.yaml" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "line 2"),
        ("- 1\n- 2\n", "a mapping of keys"),
        ("a: 1\nb: {c: 1\nd: 2\n", "line 3"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands here twice"),
        ("profile: p\ntitle: t\nstep: []\n", "line 3: unknown key step (did you mean 'steps'?)"),
    ],
)
def test_unreadable_yaml_names_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(CogumiError) as found:
        load_profile(str(path))
    assert found.value.exit_code in (2, 5)
    assert told in str(found.value)
    assert "bad.yaml" in str(found.value)


@pytest.mark.parametrize("name", ["rehersal", "no-such-thing", "missing.yaml"])
def test_an_unknown_profile_names_what_there_is(name: str) -> None:
    with pytest.raises(UsageError) as found:
        load_profile(name)
    assert "rehearsal" in str(found.value) or "missing.yaml" in str(found.value)


def test_attempts_override_deeply() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 5}, "d": [2]}) == {
        "a": {"b": 5, "c": 2},
        "d": [2],
    }
