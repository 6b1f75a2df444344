"""What lm-eval really writes with --log_samples, read back, and its answers as a reference of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_rows import gsm8k, write

from cogumi.errors import RunError, UsageError
from cogumi.workspace import Workspace
from evals.logs import read_log
from evals.logs.lm_eval_log import read_lm_eval_log
from evals.measure import Measurer
from evals.references.answers import answers_subject
from evals.references.registry import get
from evals.tasks import get_task

N = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, "gsm8k/train.jsonl", gsm8k(8))
    write(folder, "gsm8k/test.jsonl", gsm8k(N))
    return folder


@pytest.fixture(scope="module")
def log(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that lm-eval's own tracker wrote: every second answer is right."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate
    from lm_eval.loggers import EvaluationTracker

    class HalfRight(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Instance]) -> list[str]:
            golds = [str(request.doc["answer"]).rpartition("#### ")[2] for request in requests]
            return [f"So\n#### {gold if i % 2 else 5}" for i, gold in enumerate(golds)]

    task: Any = get_task("gsm8k_5shot")
    task.items(data)
    configured = task._configured[""]
    configured.set_fewshot_seed(1234)
    results = evaluate(lm=HalfRight(), task_dict={"gsm8k": configured}, bootstrap_iters=0, log_samples=True)
    folder = tmp_path_factory.mktemp("logs")
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name = "half-right"
    tracker.general_config_tracker.model_name_sanitized = "half-right"
    samples = results.pop("samples")
    results["model_name"] = "half-right"
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="gsm8k", samples=samples["gsm8k"])
    return next(folder.rglob("samples_gsm8k_*.jsonl"))


def test_a_real_log_is_read_whole(log: Path) -> None:
    found = read_log(log)
    assert (found.harness, found.task, found.model, found.complete) == (
        "lm-eval",
        "gsm8k",
        "half-right",
        True,
    )
    assert [item.score for item in found.items] == [0.0, 1.0] * (N // 2)
    assert all(item.output.startswith("So\n####") for item in found.items)
    assert all(item.prompt.endswith("Answer:") for item in found.items)
    loose = read_lm_eval_log(log, filter_name="flexible-extract", metric="exact_match")
    assert len(loose.items) == N


def test_what_a_log_does_not_have_is_an_error_with_its_neighbour(log: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no filter 'strict-mach' \(did you mean 'strict-match'\?\)"):
        read_lm_eval_log(log, filter_name="strict-mach")
    with pytest.raises(UsageError, match="no metric 'acc'"):
        read_lm_eval_log(log, metric="acc")
    rows = log.read_text().splitlines()
    cut = tmp_path / log.name
    cut.write_text("\n".join(rows[:1]) + "\n" + rows[1][:40])
    with pytest.raises(RunError, match=r"line 2: not JSON"):
        read_lm_eval_log(cut)
    other = tmp_path / "samples_x.jsonl"
    other.write_text('{"question": "?"}\n')
    with pytest.raises(RunError, match="is it a samples file of lm-eval"):
        read_lm_eval_log(other)
    other.write_text("")
    with pytest.raises(RunError, match="an empty log"):
        read_lm_eval_log(other)


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": None},
        {"arguments": ["a"]},
        {"arguments": {}},
        {"arguments": {"gen_args_0": {}}},
        {"resps": None},
        {"resps": []},
        {"metrics": None},
        {"metrics": []},
        {"metrics": [{}]},
        {"filter": []},
    ],
)
def test_rows_of_another_shape_are_one_line(log: Path, tmp_path: Path, change: dict[str, object]) -> None:
    row = json.loads(log.read_text().splitlines()[0])
    other = tmp_path / log.name
    other.write_text(json.dumps({**row, **change}) + "\n")
    with pytest.raises(RunError, match="not in the shape that lm-eval writes"):
        read_lm_eval_log(other)


def test_an_unfinished_log_says_so(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half-right"
    folder.mkdir()
    for path in log.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    kept = [row for row in log.read_text().splitlines() if json.loads(row)["doc_id"] < N - 1]
    (folder / log.name).write_text("\n".join(kept) + "\n")
    assert read_log(folder / log.name).complete is False


def test_a_logs_answers_become_a_reference_that_our_scorer_judges(
    log: Path, data: Path, workspace: Path, cogumi: Callable[..., Any]
) -> None:
    add = ("reference", "add", str(log), "--task", "gsm8k_5shot", "--data", str(data), "--json")
    code, out, err = cogumi(*add)
    assert code == 0, err
    (row_id,) = json.loads(out)
    shown = json.loads(cogumi("reference", "show", row_id, "--json")[1])
    told = (shown["kind"], shown["model"], shown["n"], shown["family"])
    assert told == ("per-item", "half-right", N, "gsm8k/exact/5-shot-cot")
    # Again: the same answers, the same row.
    assert json.loads(cogumi(*add)[1]) == [row_id]

    subject = answers_subject(get(row_id, workspace), data, workspace)
    measurement = Measurer(Workspace(workspace), data).measurement(subject, get_task("gsm8k_5shot"))
    measurement.extend(N)
    assert sorted(measurement.scores.tolist()) == [0.0] * (N // 2) + [1.0] * (N // 2)


def test_a_log_that_answers_other_words_is_refused(
    log: Path, data: Path, workspace: Path, cogumi: Callable[..., Any]
) -> None:
    del workspace
    code, _, err = cogumi("reference", "add", str(log), "--task", "gsm8k", "--data", str(data))
    assert code == 2
    assert f"answers 0 of the {N} prompts of gsm8k" in err
    code, _, err = cogumi("reference", "add", str(log))
    assert code == 2
    assert "say which task this log answers, with --task" in err
