"""Numbers that a stage measured with an interval of its own, as a gate reads them from the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cogumi.errors import RunError
from cogumi.profile import load_profile
from cogumi.subjects import Subject
from cogumi.workspace import Workspace
from evals.measure import Measurer
from evals.references.scores import MetricValue, NotMeasuredError
from gates.service import ProfileEvidence

INTERVAL = {"value": 0.8, "lower": 0.7, "upper": 0.85, "n": 12, "alpha": 0.05}


def metric(tmp_path: Path, facts: dict[str, Any], name: str = "acceptance_rate") -> MetricValue:
    subject = Subject("stage", "sha256:x", "data", facts=facts)
    measurer = Measurer(Workspace(tmp_path), None)
    return ProfileEvidence(measurer, load_profile("rehearsal"), subject).metric(name, None, 0.05)


def test_an_interval_keeps_its_bounds(tmp_path: Path) -> None:
    told = {**INTERVAL, "note": "k = 5", "simulated": True}
    assert metric(tmp_path, {"metrics": {"acceptance_rate": told}}) == MetricValue(
        0.8, 0.7, 0.85, exact=False, n=12, note="k = 5", simulated=True
    )


def test_a_plain_number_is_exact_and_comes_before_the_facts_of_the_model(tmp_path: Path) -> None:
    found = metric(tmp_path, {"metrics": {"bytes_download": 7}, "bytes": 9}, "bytes_download")
    assert found == MetricValue(7.0, 7.0, 7.0, exact=True)
    assert metric(tmp_path, {"bytes": 9}, "bytes_download").value == 9


def test_an_unbounded_side_is_infinite(tmp_path: Path) -> None:
    told = {**INTERVAL, "lower": None, "upper": None}
    found = metric(tmp_path, {"metrics": {"acceptance_rate": told}})
    assert (found.lower, found.upper) == (float("-inf"), float("inf"))


def test_a_less_sure_interval_than_the_gate_asks_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(
        NotMeasuredError, match=r"wrong with chance 0.1, the gate allows 0.05; measure it again"
    ):
        metric(tmp_path, {"metrics": {"acceptance_rate": {**INTERVAL, "alpha": 0.1}}})
    surer = {**INTERVAL, "alpha": 0.01}
    assert metric(tmp_path, {"metrics": {"acceptance_rate": surer}}).value == 0.8


def test_half_an_interval_is_an_error_that_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="acceptance_rate has no alpha, upper; run the stage"):
        metric(tmp_path, {"metrics": {"acceptance_rate": {"value": 0.8, "lower": 0.7, "n": 3}}})


def test_what_a_stage_could_not_measure_has_its_reason(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match="not measured: other tokenizers"):
        metric(tmp_path, {"unmeasured": {"acceptance_rate": "other tokenizers"}})
    with pytest.raises(NotMeasuredError, match="not measured: acceptance_rate"):
        metric(tmp_path, {})
