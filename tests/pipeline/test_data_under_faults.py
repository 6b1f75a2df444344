"""The data steps under every fault at once, killed and resumed, held against the teacher's own log."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from benchmarks import data_60k


@pytest.mark.timeout(600)
def test_quotas_are_exact_and_nothing_is_paid_twice_under_faults_and_kills(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_60k, "DATA", data_folder)
    options = argparse.Namespace(
        scale=0.001,
        faults=0.1,
        kills=2,
        kill_within=8.0,
        stall_seconds=0.5,
        timeout_seconds=1.0,
        concurrency=16,
        seed=4,
    )
    document = data_60k.profile_document(options)
    profile, workspace = tmp_path / "profile.yaml", tmp_path / "workspace"
    profile.write_text(yaml.safe_dump(document, sort_keys=False))
    outcome = data_60k.run_disturbed(options, profile, workspace)
    # Sixty rows are not 60,000: the gate on the data says so, and that is the right end.
    assert outcome.exit_code == 1, (tmp_path / "log.txt").read_text()
    assert outcome.kills == 2
    rows, off = data_60k.check_quotas(workspace, document)
    assert (rows, off) == (60, 0)
    truth = data_60k.check_against_the_teacher(workspace)
    assert truth["answers in the ledger"] == truth["answers that the teacher gave"] > 100
    assert truth["given and not in the ledger"] == truth["in the ledger and never given"] == 0
    assert truth["given again after the ledger had it"] == 0
