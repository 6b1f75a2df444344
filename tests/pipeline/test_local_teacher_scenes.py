"""Scenes before the micro questions, and what a profile may tell the local teacher."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cogumi.cli.teachers import TeacherPool
from cogumi.digest import digest_of
from cogumi.errors import UsageError
from cogumi.profile import LocalTeacherSettings, Profile, Teacher, load_profile
from cogumi.teacher_faults import CONTENT_FAULTS, FAULTS, TRANSPORT_FAULTS
from cogumi.workspace import Workspace
from evals.lint.duplicates import QuestionIndex, tokens_of
from evals.micro import DIFFICULTIES, DOMAINS, corrupt, solve, write_question
from pipeline.generation import prompts
from pipeline.generation.few_shot import HARD_SYSTEM
from pipeline.local_teacher import TeacherOptions, true_accuracy
from pipeline.local_teacher.answers import Answerer, Ask, Reply
from pipeline.local_teacher.scenes import behind_scene, with_scene, write_scene

MODEL = "gpt-4"
PLAIN = TeacherOptions(Path(), error_rate=0.3, malformed_rate=0.3, judge_reject_rate=0.3)
VARIED = TeacherOptions(Path(), error_rate=0.3, malformed_rate=0.3, judge_reject_rate=0.3, varied=True)


def say(options: TeacherOptions, text: str, system: str = "", *later: tuple[str, str]) -> Reply:
    turns = (("user", text), *later)
    return Answerer(options).reply(Ask(MODEL, system, turns, max_tokens=9000, digest=repr(turns)))


def asked(count: int = 30) -> list[str]:
    rng = random.Random(5)
    return [write_question(rng.choice(DOMAINS), rng.choice(DIFFICULTIES), rng) for _ in range(count)]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_hardly_two_questions_of_a_cell_are_alike(domain: str, difficulty: str) -> None:
    rng = random.Random(domain + difficulty)
    index = QuestionIndex(0.6)
    for _ in range(300):
        question = with_scene(write_question(domain, difficulty, rng), rng)
        assert index.match(question) is None, question
        assert len(question) <= 500
        index.add(question)


def test_scene_is_two_or_three_whole_sentences_without_a_blank_line() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = write_scene(rng)
        sentences = scene.split(". ")
        assert 2 <= len(sentences) <= 3
        assert all(sentence[0].isupper() for sentence in sentences)
        assert scene.endswith(".")
        assert "\n" not in scene
        assert "{" not in scene


def test_writer_sets_a_scene_only_when_told() -> None:
    prompt = prompts.writer_prompt("reading", "hard", 9, 0, 0)
    plain, varied = (prompts.parse_questions(say(each, prompt).text) or [] for each in (PLAIN, VARIED))
    assert len(plain) == len(varied) == 9
    assert all(solve(question) for question in plain)
    assert not any(solve(question) for question in varied)
    assert all(solve(behind_scene(question)) for question in varied)


@pytest.mark.parametrize("system", ["", prompts.EASY_SYSTEM, HARD_SYSTEM])
def test_question_behind_a_scene_is_answered_as_the_bare_one(system: str) -> None:
    rng = random.Random(1)
    for question in asked():
        assert say(VARIED, with_scene(question, rng), system).text == say(PLAIN, question, system).text


def test_judge_scores_the_question_behind_the_scene() -> None:
    rng = random.Random(2)
    for question in asked():
        judged = prompts.judge_prompt("math", "easy", with_scene(question, rng))
        assert say(VARIED, judged).text == say(PLAIN, prompts.judge_prompt("math", "easy", question)).text


def test_true_accuracy_holds_with_scenes() -> None:
    rng = random.Random(3)
    questions = [write_question("math", "hard", rng) for _ in range(80)]
    scenes = [with_scene(question, rng) for question in questions]
    accuracy = true_accuracy(VARIED, MODEL, "math", scenes)
    assert accuracy == true_accuracy(PLAIN, MODEL, "math", questions) < 1
    right = sum(
        say(VARIED, scene).text == getattr(solve(question), "answer", None)
        for scene, question in zip(scenes, questions, strict=True)
    )
    assert right == round(accuracy * 80)
    with pytest.raises(UsageError):
        corrupt(scenes[0], rng)


# Faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("varied", [False, True])
def test_near_duplicate_repeats_with_one_word_changed(varied: bool) -> None:
    options = TeacherOptions(Path(), faults={"near_duplicate": 1.0}, varied=varied)
    for domain in DOMAINS:
        written = json.loads(say(options, prompts.writer_prompt(domain, "hard", 8, 0, 0)).text)
        first, last = tokens_of(written[0]), tokens_of(written[-1])
        assert len(first) == len(last)
        assert sum(a != b for a, b in zip(first, last, strict=True)) == 1
        assert solve(behind_scene(written[-1])) is not None
        if varied:
            index = QuestionIndex(0.8)
            index.add(written[0])
            assert index.match(written[-1]) == "near"


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_repair_request_draws_its_fault_anew(fault: str) -> None:
    spoilt = TeacherOptions(Path(), faults={fault: 0.5})
    sound = TeacherOptions(Path())
    repaired = broken = 0
    for call in range(60):
        prompt = prompts.writer_prompt("math", "easy", 5, call, 0)
        if say(spoilt, prompt) == say(sound, prompt):
            continue
        later = (("assistant", "x"), ("user", prompts.REPAIR_JSON))
        if say(spoilt, prompt, "", *later) == say(sound, prompt, "", *later):
            repaired += 1
        else:
            broken += 1
    assert repaired > 5
    assert broken > 5


def test_faults_have_one_list() -> None:
    assert set(FAULTS) == {*TRANSPORT_FAULTS, *CONTENT_FAULTS, "batch_error", "batch_expire"}
    assert {"garbage", "stall"} < set(TRANSPORT_FAULTS)


# Profiles --------------------------------------------------------------------------------------------


def test_settings_without_the_new_keys_keep_their_digest() -> None:
    teacher = Teacher(api="openai", model="m", base_url="local")
    before = {
        "error_rate": 0.05,
        "error_rates": {},
        "judge_reject_rate": 0.05,
        "malformed_rate": 0.02,
        "seed": 0,
    }
    assert teacher.config("t", LocalTeacherSettings()).endpoint == digest_of(before)


def test_only_what_shapes_answers_is_part_of_the_digest() -> None:
    teacher = Teacher(api="openai", model="m", base_url="local")

    def endpoint(**settings: object) -> str:
        return teacher.config("t", LocalTeacherSettings.model_validate(settings)).endpoint

    plain = endpoint()
    slow = {"latency_ms": 5, "batch_delay": 1, "stall_seconds": 2, "retry_after_seconds": 0.1}
    assert endpoint(**slow, faults={"drop": 0.5, 429: 0.1}) == plain
    assert len({plain, endpoint(varied=True), endpoint(faults={"empty": 0.5})}) == 3


def test_unknown_fault_in_a_profile_names_line_and_faults(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("profile: p\ntitle: t\nlocal_teacher:\n  faults: {garbag: 0.1}\n")
    with pytest.raises(UsageError, match=r"line 4: local_teacher\.faults\.garbag.*'garbage'"):
        load_profile(str(path))


def test_pool_hands_the_settings_on_and_starts_nothing_unasked(tmp_path: Path) -> None:
    profile = Profile.model_validate(
        {
            "profile": "p",
            "title": "t",
            "local_teacher": {"varied": True, "faults": {"429": 1.0}, "retry_after_seconds": 0.5},
            "teachers": {
                "far": {"api": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"},
                "near": {"api": "openai", "model": "m", "base_url": "local"},
            },
        }
    )
    import openai

    with TeacherPool(Workspace(tmp_path), profile) as pool:
        teachers = pool()
        assert sorted(teachers) == ["far", "near"]
        assert "nobody" not in teachers
        assert teachers["far"].base_url == "http://127.0.0.1:9/v1"
        assert not (tmp_path / "local-teacher").exists()
        url = teachers["near"].base_url
        assert url == teachers["near"].base_url
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert refused.value.response.headers["retry-after"] == "0.5"


# The document ----------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[2] / "docs" / "local-teacher.md"


def test_profile_of_the_document_is_one(tmp_path: Path) -> None:
    example = DOCUMENT.read_text().partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "p.yaml"
    path.write_text(example)
    profile = load_profile(str(path))
    assert [teacher.gguf for teacher in profile.teachers.values()] == [
        None,
        "smollm2-135m-instruct",
        "models/mine-q4_k_m.gguf",
    ]
    assert not any(profile.teachers[name].config(name, None, "x").simulated for name in profile.teachers)


def test_document_names_every_setting_and_every_fault() -> None:
    text = DOCUMENT.read_text()
    for name in (*FAULTS, *LocalTeacherSettings.model_fields):
        assert f"`{name}`" in text, name
