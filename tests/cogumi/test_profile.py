from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cogumi.errors import CogumiError, RunError, UsageError
from cogumi.profile import Expected, StageStep, load_profile, parse_profile, profile_names
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


PARENT = """\
profile: parent
title: The parent
seed: 5
teachers:
  t: {api: openai, model: gpt-4o}
expected: {question_tokens: [1, 2, 3]}
steps:
- {id: a, uses: stage.a}
"""


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: " + "[" * 100_000, "line 1: nested more than 200 levels deep"),
        ("a:\n" + "".join(" " * k + "b:\n" for k in range(1, 400)), "nested more than 200 levels deep"),
        ("steps: &a [*a]\n", "line 1: an alias within its own anchor"),
        (BOMB, "its aliases come to"),
        ("seed: 2023-13-45\n", "a value that YAML cannot read: month must be in 1..12"),
        ("seed: !!int abc\n", "a value that YAML cannot read"),
        ("seed: !!bool abc\n", "a value that YAML cannot read"),
    ],
    ids=["deep list", "deep mapping", "itself", "bomb", "date", "int", "bool"],
)
def test_hostile_yaml_is_one_line_at_once(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RunError, match=re.escape(told)):
        load_profile(str(path))


def test_a_profile_inherits_the_keys_that_it_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "parent.yaml").write_text(PARENT)
    (tmp_path / "child.yaml").write_text(
        "profile: child\ntitle: The child\nextends: below/parent.yaml\nexpected: {easy_answer_tokens: 7}\n"
    )
    (tmp_path / "below" / "grandchild.yaml").write_text(
        "profile: grandchild\ntitle: g\nextends: ../child.yaml\nsteps: []\n"
    )
    parent = load_profile(str(tmp_path / "below" / "parent.yaml"))
    child = load_profile(str(tmp_path / "child.yaml"))
    assert (child.profile, child.title, child.seed, child.extends) == ("child", "The child", 5, None)
    assert child.teachers == parent.teachers
    assert child.steps == parent.steps
    # A key of its own replaces the inherited one as a whole.
    assert child.expected.easy_answer_tokens == (7, 7, 7)
    assert child.expected.question_tokens == Expected().question_tokens
    grandchild = load_profile(str(tmp_path / "below" / "grandchild.yaml"))
    assert (grandchild.seed, grandchild.steps, grandchild.expected) == (5, [], child.expected)
    # What a run records is whole and reads the same.
    recorded = child.model_dump(mode="json")
    assert parse_profile(recorded, "of a run") == child


@pytest.mark.parametrize(
    ("parent", "child", "told"),
    [
        (PARENT, "extends: parent.yaml\nstep: []\n", "child.yaml: line 4: unknown key step (did you mean"),
        (PARENT, "extend: parent.yaml\n", "child.yaml: line 3: unknown key extend (did you mean 'extends'?)"),
        (PARENT + "sede: 1\n", "extends: parent.yaml\n", "parent.yaml: line 9: unknown key sede (did you"),
        (PARENT, "extends: parnt.yaml\n", "child.yaml: extends: no such file"),
        (PARENT, "extends: rehersal\n", "extends: no profile 'rehersal' (did you mean 'rehearsal'?)"),
        (PARENT, "extends: [parent.yaml]\n", "extends: the name or path of one profile"),
        (PARENT + "extends: child.yaml\n", "extends: parent.yaml\n", "extends this profile itself"),
        (PARENT, "extends: child.yaml\n", "extends this profile itself"),
        (
            PARENT,
            "extends: parent.yaml\nteachers: {t: {api: grpc, model: m}}\n",
            "child.yaml: line 4: teachers.t",
        ),
    ],
)
def test_what_is_wrong_with_inheritance_names_the_right_file(
    tmp_path: Path, parent: str, child: str, told: str
) -> None:
    (tmp_path / "parent.yaml").write_text(parent)
    (tmp_path / "child.yaml").write_text("profile: child\ntitle: c\n" + child)
    with pytest.raises(UsageError) as found:
        load_profile(str(tmp_path / "child.yaml"))
    assert told in str(found.value)
    assert "\n" not in str(found.value)


def test_name_and_title_are_never_inherited(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(PARENT)
    (tmp_path / "child.yaml").write_text("title: c\nextends: parent.yaml\n")
    with pytest.raises(UsageError, match="the key profile is missing"):
        load_profile(str(tmp_path / "child.yaml"))


def test_both_llama_profiles_make_the_same_60_000() -> None:
    large, small = load_profile("llama-3.1-8b"), load_profile("llama-3.2-1b")
    made = [
        # But for what counts their tokens: each model's own tokenizer.
        [step.model_copy(update={"settings": {}}) if step.id == "merged" else step for step in profile.steps]
        for profile in (large, small)
    ]
    assert made[0][:6] == made[1][:6]
    assert large.teachers == small.teachers
    assert large.models != small.models
    quotas = {
        step.id: step.settings["quotas"]
        for step in large.steps
        if isinstance(step, StageStep) and "quotas" in step.settings
    }["questions"]
    cells = [count for domain in quotas.values() for count in domain.values()]
    assert (len(cells), sum(cells)) == (16, 60_000)
    assert sum(domain["easy"] for domain in quotas.values()) == 24_000
    writer = next(step for step in large.steps if step.id == "questions")
    assert isinstance(writer, StageStep)
    # Nothing that a suite of the profile measures may be asked.
    measured = {task for suite in large.suites.values() for task in suite}
    assert set(writer.settings["writer"]["leak_tasks"]) == measured
    assert [step.plan for step in large.steps[:6]] == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.5"]


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ("[1, 2]", "expected.question_tokens"),
        ("0", "expected.question_tokens"),
        ("x", "expected.question_tokens"),
    ],
)
def test_expected_lengths_are_a_number_or_three(tmp_path: Path, tokens: str, told: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"profile: p\ntitle: t\nexpected: {{question_tokens: {tokens}}}\n")
    with pytest.raises(UsageError, match=told):
        load_profile(str(path))


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
