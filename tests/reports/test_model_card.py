"""The model card: the hub's own parser reads back the report's numbers, and no name breaks out of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from small_run import Maker

from cogumi.digest import digest_of
from cogumi.errors import UsageError
from cogumi.store import Artifact
from reports.card_head import chosen
from reports.model import build_report
from reports.model_card import render_model_card
from reports.origins import licence_of, origin_of
from reports.schema import ArtifactPart, Report

APACHE = "\n        Apache License\n      Version 2.0, January 2004\n"


def card_of(maker: Maker, named: str | None = None) -> tuple[Report, ArtifactPart, str]:
    report = build_report(maker.workspace, maker.run)
    part = chosen(report, named)
    assert part is not None
    return report, part, render_model_card(report, part, origin_of(maker.workspace, part.digest))


def results_of(document: str) -> dict[str, EvalResult]:
    card = ModelCard(document)
    return {one.dataset_name: one for one in card.data.eval_results or []}


def test_the_hubs_parser_reads_back_the_numbers_of_the_report(filled: Maker) -> None:
    report, part, document = card_of(filled, "q4")
    found = results_of(document)
    suite = next(one for one in part.quality if one.suite == "general")
    assert set(found) == {"suite-general", *(task.task for task in suite.tasks)}
    whole = found["suite-general"]
    assert (whole.metric_value, whole.verified, whole.task_type) == (suite.score, False, "text-generation")
    told = {"lower": suite.lower, "upper": suite.upper, "n": suite.n, "ratio": suite.ratio}
    assert whole.metric_args is not None
    assert {name: whole.metric_args[name] for name in told} == told
    assert whole.metric_args["reference_simulated"] is True
    for task in suite.tasks:
        one = found[task.task]
        assert one.metric_value == task.score
        assert one.metric_args is not None
        assert (one.metric_args["n_total"], one.metric_args["protocol"]) == (task.n_total, task.protocol)
    assert ModelCard(document).data.model_name == f"{report.run.name}/q4"


def test_what_no_file_states_is_left_out_and_said_to_be_unknown(filled: Maker) -> None:
    _, _, document = card_of(filled, "q4")
    data = ModelCard(document).data
    assert (data.license, data.base_model, data.language) == (None, None, None)
    assert (data.library_name, data.pipeline_tag) == ("gguf", "text-generation")
    assert "Unknown: no file of the model" in document
    assert "Carbon emitted: unknown" in document


def test_sections_hold_sizes_verdicts_training_and_energy(filled: Maker) -> None:
    _, part, document = card_of(filled, "q4")
    assert f"({part.bytes_download:,} bytes)" in document
    assert "**UNDECIDED** – gate phase3, Title of phase3, attempt 1:" in document
    assert "| size | PASS | bytes_download 48,000 &lt;= 540,000,000 (48 kB, bar 540 MB) |" in document
    assert "| base, attempt 2 | 1.5 | 2 min 0 s | 1.5 kWh |" in document
    assert "Left out by the profile: resident." in document
    headings = [line for line in document.splitlines() if line.startswith("#")]
    wanted = ["## Uses", "## Bias, Risks, and Limitations", "## Training Details", "## Evaluation"]
    assert [one for one in headings if one in wanted] == wanted
    assert "gpt-4o-mini" in document.partition("## Licence")[2]


@pytest.mark.parametrize(
    ("gpus", "told"),
    [({"gpus": 2.0, "gpu_hours": 1.5}, "1.75 GPU hours"), ({}, "at least 0.25 GPU hours")],
)
def test_gpu_hours_of_the_recipe_are_those_of_its_own_steps(
    maker: Maker, gpus: dict[str, float], told: str
) -> None:
    trained: dict[str, Any] = {"tokens_seen": 9_000, "parameters": 1_000}
    failed, passed = (maker.artifact("model", 1_000 + size, **trained, steps=size) for size in (1, 2))
    pruned = maker.artifact("model", 900, inputs={"model": passed.digest}, parameters=900)
    shipped = maker.artifact("gguf", 500, inputs={"model": pruned.digest}, parameters=900)
    maker.step("base", 1, failed, seconds=60.0, gpus=1.0, gpu_hours=4.0)
    maker.step("base", 2, passed, seconds=60.0, **gpus)
    maker.step("pruned", 1, pruned, seconds=30.0, gpus=1.0, gpu_hours=0.25)
    maker.step("q4", 1, shipped, seconds=1.0)
    report, _, document = card_of(maker, "q4")
    assert f"- This model and all that it was made from: {told}." in document
    assert "| pruned | 0.25 |" in re.sub(" +", " ", document)
    assert report.money.gpu is not None
    assert report.money.gpu.hours == 4.25 + gpus.get("gpu_hours", 0.0)


def test_the_shipped_model_is_that_of_the_last_pass(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    part = chosen(report)
    # phase3 came later, but is undecided on q4.
    assert part is not None
    assert part.name == "base (attempt 2)"
    q4 = next(one for one in report.artifacts if one.name == "q4")
    assert chosen(report, str(q4.number)) == chosen(report, q4.digest[:14]) == chosen(report, "q4") == q4


@pytest.mark.parametrize(
    ("named", "told"), [("q44", "did you mean 'q4'"), ("ffffffff", "no model of this run")]
)
def test_an_unknown_model(filled: Maker, named: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        chosen(build_report(filled.workspace, filled.run), named)


def test_a_run_without_models_has_no_card(maker: Maker) -> None:
    assert chosen(build_report(maker.workspace, maker.run)) is None


HOSTILE = "x\n---\nlicense: mit\n`|](javascript:1) <script>\x00\u202e\ud800 *: &a #"


def test_a_hostile_title_and_run_name_stay_text(maker: Maker) -> None:
    hostile = Maker(maker.workspace, "run: {a}\n---\nlicense: mit\n# x", title=HOSTILE)
    model = hostile.artifact("model", 10, parameters=5)
    hostile.step("base", 1, model)
    hostile.evidence(model.digest, 0.5)
    _, _, document = card_of(hostile)
    data = ModelCard(document).data
    assert data.license is None
    assert data.model_name == "run: {a} --- license: mit # x/base"
    assert len(results_of(document)) == 3
    body = document.partition("\n---\n")[2]
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert not set("\x00\u202e\ud800") & set(document)
    # A name may go over several lines in a command, where the shell needs it as it is.
    unfenced = "".join(body.split("```")[::2])
    assert [line for line in unfenced.splitlines() if line.startswith("# ")] == [
        "# run: {a} --- license: mit \\# x/base"
    ]


# What files state ---------------------------------------------------------------------------------


def with_files(maker: Maker, kind: str, files: dict[str, str], **made: Any) -> Artifact:
    staging = maker.workspace.store.new_staging()
    for name, content in files.items():
        (staging / "payload" / name).write_text(content)
    about = {"stage": "made.up", "version": 1, "settings": {}, "inputs": {}, **made}
    return maker.workspace.store.commit(staging, kind=kind, made_by=about, facts={}, created="now")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"LICENSE": APACHE}, ("apache-2.0", "apache-2.0", "LICENSE")),
        ({"LICENSE.txt": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version"}, ("llama3.2",) * 2),
        ({"LICENSE": "Owner's own terms\nNo."}, ("other", "Owner's own terms", "LICENSE")),
        ({"README.md": "---\nlicense: cc-by-4.0\n---\n# x"}, ("cc-by-4.0", "cc-by-4.0", "")),
        ({"README.md": "---\nlicense: [\n---\n"}, None),
        ({"LICENSE": "  \n"}, None),
        ({"model.gguf": "no GGUF file"}, None),
    ],
)
def test_a_licence_is_the_one_that_a_file_states(
    maker: Maker, files: dict[str, str], told: tuple[str, ...] | None
) -> None:
    found = licence_of(with_files(maker, "model", files))
    seen = None if found is None else (found.id, found.name, found.link)
    assert (seen if told is None or seen is None else seen[: len(told)]) == told


def test_the_base_models_name_revision_and_licence_reach_the_card(maker: Maker) -> None:
    files = {"LICENSE": APACHE, "model.safetensors": "w"}
    settings = {"model": "smollm2-135m-instruct"}
    base = with_files(maker, "model", files, stage="models.pretrained", settings=settings)
    data = with_files(maker, "dataset", {"README.md": "---\nlanguage:\n- en\n---\n"})
    tuned = with_files(
        maker,
        "model",
        {"model.safetensors": "v"},
        stage="training.sft",
        inputs={"model": base.digest, "data": data.digest},
    )
    maker.step("data", 1, data)
    maker.step("base", 1, tuned)
    maker.step("q4", 1, with_files(maker, "gguf", {"model.gguf": "g"}, inputs={"model": tuned.digest}))
    _, _, document = card_of(maker)
    head = yaml.safe_load(document.split("---\n")[1])
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (head["base_model_relation"], head["license"], head["language"]) == (
        "finetune",
        "apache-2.0",
        ["en"],
    )
    assert f"LICENSE of {base.short} states" in document


def test_a_revision_is_told_and_a_folder_is_no_name(maker: Maker) -> None:
    staging = maker.workspace.store.new_staging()
    about = {"stage": "models.pretrained", "version": 1, "settings": {"model": "a/b"}, "inputs": {}}
    (staging / "payload" / "model.safetensors").write_text("w")
    facts = {"source": f"owner/name at revision {'a1' * 20}"}
    known = maker.workspace.store.commit(staging, kind="model", made_by=about, facts=facts, created="now")
    found = origin_of(maker.workspace, known.digest)
    assert (found.base, found.revision) == ("owner/name", "a1" * 20)
    folder = with_files(
        maker, "model", {"x.safetensors": "w"}, stage="models.pretrained", settings={"model": "a/b"}
    )
    assert origin_of(maker.workspace, folder.digest).base is None


def test_a_model_that_is_gone_still_has_a_card(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    part = next(one for one in report.artifacts if one.name == "q4")
    folder = filled.workspace.store.objects / part.digest.removeprefix("sha256:")
    folder.rename(folder.with_name("elsewhere"))
    _, _, document = card_of(filled, "q4")
    data = ModelCard(document).data
    assert data.library_name is None
    assert results_of(document)["suite-general"].metric_value is not None


def test_the_card_that_the_command_writes(filled: Maker, tmp_path: Path) -> None:
    from cogumi.cli.report import write_report

    write_report(filled.workspace, filled.run, tmp_path)
    _, _, document = card_of(filled)
    assert (tmp_path / "model-card.md").read_text() == document
    other = Maker(filled.workspace, "empty")
    write_report(other.workspace, other.run, tmp_path)
    # That of another run would tell of another model.
    assert not (tmp_path / "model-card.md").exists()
    assert "model-card" not in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["run"]["name"] == "empty"


def test_digests_name_models_only_when_one_begins_so(filled: Maker) -> None:
    report = build_report(filled.workspace, filled.run)
    assert digest_of("x") not in {one.digest for one in report.artifacts}
    with pytest.raises(UsageError, match="no model of this run"):
        chosen(report, digest_of("x"))
