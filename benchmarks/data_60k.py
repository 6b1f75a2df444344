"""The plan's 60,000 questions and answers through all five steps against the local teacher, also disturbed.

The steps, quotas and prices are those of the profile llama-3.1-8b; only the teachers are local (real HTTP on
loopback, the dollars are play money). ``--faults 0.1`` injects each of eleven faults at that rate, and
``--kills 20`` ends the process with SIGKILL at random moments. The teacher's own log of what it answered is
the truth that the ledger is held against:

- every cell holds its quota exactly, and the gate on the data says what it says;
- the ledger holds the answers that the teacher gave, and no other;
- no answer was given again after the ledger had it: nothing acknowledged is paid twice, and nothing is lost.

Example: python -m benchmarks.data_60k --faults 0.1 --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cold_gate import DATA
from benchmarks.timing import machine
from cogumi.ledger import Ledger
from cogumi.profile import load_profile
from cogumi.units import duration

RUN = "data"
FAULTS = ("429", "500", "drop", "stall", "garbage", "truncated", "refusal", "wrong_count", "duplicate")
"""What is injected at the rate of ``--faults``: on the wire first, in what the model says after that."""
_LEAK_FILES = ("gsm8k/test_000_659.jsonl", "ifeval/prompts.jsonl")


def profile_document(options: argparse.Namespace) -> dict[str, Any]:
    """Return the owner's plan with local teachers, and with waiting times that suit a loopback."""
    document = load_profile("llama-3.1-8b").model_dump(mode="json", exclude_none=True)
    document |= {"profile": "data-60k", "title": "Plan 1.1 to 1.5 against the local teacher"}
    document |= {"models": [], "gates": [], "references": {}, "suites": {}, "limits": {}}
    rate = options.faults
    document["local_teacher"] = {
        "varied": True,
        "seed": options.seed,
        "faults": dict.fromkeys(FAULTS, rate) if rate else {},
        "stall_seconds": options.stall_seconds,
        "retry_after_seconds": 0.2,
    }
    if rate:
        document["local_teacher"]["faults"] |= {"batch_error": rate, "batch_expire": rate}
    for name, teacher in document["teachers"].items():
        document["teachers"][name] = {"api": teacher["api"], "base_url": "local", **_price(name)}
        document["teachers"][name]["model"] = teacher["model"]
    ends = [step["id"] for step in document["steps"]].index("data_gate") + 1
    document["steps"] = document["steps"][:ends]
    for step in document["steps"]:
        settings = step.get("settings", {})
        # Llama's tokenizer is not everywhere: tokens are estimated here, and the card says so.
        settings.pop("tokenizer", None)
        if step.get("uses", "generation.merge") == "generation.merge":
            continue
        settings |= {"concurrency": options.concurrency, "poll_seconds": 0.5, "backoff_seconds": 0.1}
        settings |= {"timeout_seconds": options.timeout_seconds, "attempts": 20}
        if "quotas" in settings:
            settings["quotas"] = {
                domain: {level: max(1, round(count * options.scale)) for level, count in cells.items()}
                for domain, cells in settings["quotas"].items()
            }
            settings["writer"] = {"questions_per_call": 20, "leak_files": list(_LEAK_FILES)}
        if "reserve_share" in settings and rate:
            # A tenth refused and a tenth cut short, also of the repairs, leave 4 % without an answer.
            settings |= {"reserve_share": 0.1, "reserve": 10}
    return document


def _price(name: str) -> dict[str, Any]:
    from cogumi.prices import price_of

    price = price_of(load_profile("llama-3.1-8b").teachers[name])
    known = {"input_usd_per_mtok": price.input_usd_per_mtok, "output_usd_per_mtok": price.output_usd_per_mtok}
    known["batch_discount"] = price.batch_discount
    return known | {"price_source": "play money at list price"}


@dataclass
class Outcome:
    """What the processes of one run took."""

    exit_code: int
    seconds: float
    kills: int
    peak_bytes: int
    """Highest resident memory of any process of ours; the teacher's is not among it."""


def run_disturbed(options: argparse.Namespace, profile: Path, workspace: Path) -> Outcome:
    """Run to the end, with SIGKILLs at random moments; the teacher dies with its parent and comes back."""
    chance = random.Random(options.seed)
    outcome = Outcome(0, 0.0, 0, 0)
    begun = time.monotonic()
    while True:
        process = _start(profile, workspace)
        more = outcome.kills < options.kills
        deadline = time.monotonic() + chance.uniform(1.0, options.kill_within) if more else float("inf")
        while process.poll() is None and time.monotonic() < deadline:
            outcome.peak_bytes = max(outcome.peak_bytes, _peak_bytes(process.pid))
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome.kills += 1
            _wait_for_the_teacher(workspace)
            print(f"  kill {outcome.kills} after {duration(time.monotonic() - begun)}", flush=True)
            continue
        outcome.exit_code = process.returncode
        outcome.seconds = time.monotonic() - begun
        return outcome


def _start(profile: Path, workspace: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cogumi", "run", "--profile", str(profile), "--run", RUN, "--yes"]
    command += ["--workspace", str(workspace), "--data", str(DATA)]
    with (workspace.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(peak[0]) if peak else 0


def _wait_for_the_teacher(workspace: Path) -> None:
    """Return when the killed run's teacher is gone, which it is soon after its parent."""
    mark = str(workspace / "local-teacher").encode()
    while any(mark in _command(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        time.sleep(0.1)


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def check_against_the_teacher(workspace: Path) -> dict[str, int]:
    """Hold the ledger against the teacher's log; every number but the first two must be 0."""
    with (workspace / "local-teacher" / "answered.jsonl").open(encoding="utf-8") as log:
        answered = [(str(entry["id"]), float(entry["at"])) for entry in map(json.loads, log)]
    ledger = Ledger(workspace)
    recorded = _recorded(ledger)
    ledger.close()
    given = Counter(name for name, _ in answered)
    return {
        "answers that the teacher gave": len(given),
        "answers in the ledger": len(recorded),
        "given and not in the ledger": len(given.keys() - recorded.keys()),
        "in the ledger and never given": len(recorded.keys() - given.keys()),
        "given again after the ledger had it": sum(
            at > recorded.get(name, float("inf")) for name, at in answered
        ),
        "given twice before the ledger had it (a kill came between)": sum(
            count - 1 for count in given.values()
        ),
    }


def _recorded(ledger: Ledger) -> dict[str, float]:
    """Return the time at which each answer was recorded, by the provider's id."""
    from sqlalchemy import select

    from cogumi.ledger.schema import calls

    found: dict[str, float] = {}
    with ledger.engine.connect() as connection:
        query = select(calls.c.response, calls.c.created_at)
        for response, created in connection.execution_options(yield_per=1000).execute(query):
            if response["finish"] != "rejected":
                assert response["id"] not in found, "two rows of the ledger hold one answer"
                found[response["id"]] = created
    return found


def check_quotas(workspace: Path, document: dict[str, Any]) -> tuple[int, int]:
    """Return (rows of the training file, cells that are off their quota)."""
    quotas = next(step["settings"]["quotas"] for step in document["steps"] if step["id"] == "questions")
    wanted = {(domain, level): n for domain, cells in quotas.items() for level, n in cells.items()}
    counted: Counter[tuple[str, str]] = Counter()
    questions: set[str] = set()
    with (workspace / "data/phase1/training_60k_complete.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            counted[row["domain"], row["difficulty"]] += 1
            questions.add(row["question"])
    assert len(questions) == sum(counted.values()), "a question is there twice"
    return sum(counted.values()), sum(counted[cell] != quota for cell, quota in wanted.items())


def report(workspace: Path, document: dict[str, Any], outcome: Outcome) -> int:
    """Print everything; return the number of things that must not be."""
    ledger = Ledger(workspace)
    for row in ledger.steps(RUN):
        seconds = row.metrics.get("seconds", 0.0)
        told = {name: int(row.metrics[name]) for name in sorted(row.metrics) if name.startswith("calls_")}
        print(f"  {row.step:<14} {duration(seconds):>12}  {row.note or row.status}  {told or ''}")
    verdicts = [str(row["verdict"]) for row in ledger.verdicts(RUN)]
    spent = sum(ledger.spent(RUN))
    ledger.close()
    rows, off = check_quotas(workspace, document)
    truth = check_against_the_teacher(workspace)
    for name, count in truth.items():
        print(f"  {name}: {count:,}")
    print(f"  rows: {rows:,}; cells off their quota: {off}; gate: {', '.join(verdicts) or 'none'}")
    print(f"  exit code {outcome.exit_code}, {duration(outcome.seconds)}, {outcome.kills} kills")
    print(f"  peak memory {outcome.peak_bytes / 1e6:.0f} MB; ${spent:.2f} simulated (nothing was paid)")
    numbers = list(truth.values())
    return off + sum(numbers[2:5]) + (outcome.exit_code not in (0, 1))


def main(arguments: list[str]) -> None:
    """Run and report; exits 1 when a number is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the plan's quotas")
    parser.add_argument("--faults", type=float, default=0.0, help="rate of each fault")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--kill-within", type=float, default=45.0, help="most seconds of a process's life")
    parser.add_argument("--stall-seconds", type=float, default=30.0)
    parser.add_argument("--timeout-seconds", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="leave the workspace in this folder")
    options = parser.parse_args(arguments)
    print(f"machine: {machine()}")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="cogumi-data-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        document = profile_document(options)
        profile, workspace = folder / "data-60k.yaml", folder / "workspace"
        profile.write_text(yaml.safe_dump(document, sort_keys=False))
        outcome = run_disturbed(options, profile, workspace)
        if outcome.exit_code not in (0, 1):
            print((folder / "log.txt").read_text()[-3000:])
        wrong = report(workspace, document, outcome)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if wrong:
        sys.exit(f"{wrong} of these must be 0")


if __name__ == "__main__":
    main(sys.argv[1:])
