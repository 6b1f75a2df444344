"""What compression costs in task scores: greedy answers of each candidate, made on a GPU, scored elsewhere.

    python -m benchmarks.compression_tasks prompts --suite ifeval,gsm8k --data FOLDER --out prompts.jsonl
    python -m benchmarks.compression_tasks generate --model FOLDER --prompts prompts.jsonl --out DIR
        --candidate dense=FOLDER --candidate "Q4_0=FILE.gguf" [--frontier WORK --sides "ours 75 MB;Q2_K"]
    python -m benchmarks.compression_tasks score --answers DIR --suite ifeval,gsm8k --data FOLDER [--out FILE]

``prompts`` and ``score`` need lm-eval for some tasks, ``generate --prompts`` does not; ``generate --suite …
--data …`` makes the prompts itself. A candidate is a dense, compressed-tensors or pruned folder (an adapter
in it is used), or a GGUF file (an ``adapter.gguf`` beside it is); ``--frontier`` takes finished sides of
``benchmarks.compression_frontier`` by name. Answers are appended batch by batch, one file for each candidate,
and what is answered is not asked again; several processes may share ``--out`` when their candidates differ.
The items come in their committed order, so that ``--limit`` takes the same ones everywhere. ``score``:
``benchmarks.compression_scores``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.compression_answers import Candidate, answer, candidate, opened
from benchmarks.compression_frontier import finished
from benchmarks.compression_questions import (
    Question,
    answers_file,
    questions_of,
    read_answers,
    read_questions,
    write_questions,
)
from benchmarks.compression_scores import score, table
from cogumi.devices import compute_device
from cogumi.errors import CogumiError, RunError, UsageError, nearest
from cogumi.store import write_atomic

if TYPE_CHECKING:
    from evals.backends.hf import HFBackend


def unanswered(
    questions: Sequence[Question], found: Candidate, digest: str, path: Path
) -> Iterator[Question]:
    """Yield the questions that a candidate has not answered yet.

    Raises ``UsageError`` where the file holds answers of another model, or to another prompt.
    """
    known = {(line["task"], line["item"]): line for line in read_answers(path)}
    for question in questions:
        line = known.get((question.task, question.item))
        if line is None:
            yield question
        elif (line["model"], line["asked"]) != (digest, question.asked):
            what = "of another model" if line["model"] != digest else "to another prompt"
            raise UsageError(
                f"{path}: holds answers {what} under the name {found.name} ({question.task} "
                f"{question.item}); take another name or remove the file"
            )


def generate(found: Candidate, questions: Sequence[Question], args: argparse.Namespace) -> None:
    """Answer what a candidate has not answered yet, tell how fast; raises as ``opened`` and ``answer``."""
    path, digest = answers_file(args.out, found.name), found.digest()
    left = list(unanswered(questions, found, digest, path))
    if not left:
        print(f"{found.name}: all {len(questions)} answers are there", flush=True)
        return
    started, told = time.perf_counter(), 0
    with opened(found, args.model, args.dtype) as backend, path.open("a", encoding="utf-8") as handle:
        for batch in batches(left, backend, args.batch):
            answers = answer(
                backend, [each.prompt for each in batch], max_tokens=batch[0].max_tokens, leg=args.leg
            )
            for question, said in zip(batch, answers, strict=True):
                line = {
                    "candidate": found.name,
                    "model": digest,
                    "task": question.task,
                    "item": question.item,
                    "asked": question.asked,
                    "text": said.text,
                    "finish_reason": said.finish_reason,
                    "prompt_tokens": said.prompt_tokens,
                    "completion_tokens": said.completion_tokens,
                    "stack": backend.stack,
                }
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
            told += sum(said.completion_tokens for said in answers)
            seconds = time.perf_counter() - started
            print(f"{found.name}: {len(batch)} of {batch[0].task}, {told / seconds:.0f} tokens/s", flush=True)
    print(f"{found.name}: {len(left)} answers in {time.perf_counter() - started:.0f} s", flush=True)


def batches(left: Sequence[Question], backend: HFBackend, size: int) -> Iterator[list[Question]]:
    """Yield batches of one task and one limit each, prompts of like length together, the longest first."""
    lengths = [len(backend.encode(question.prompt)) for question in left]
    groups: dict[tuple[str, int], list[int]] = {}
    # The longest first: what finds no memory does so at once.
    for at in sorted(range(len(left)), key=lambda at: -lengths[at]):
        groups.setdefault((left[at].task, left[at].max_tokens), []).append(at)
    for group in groups.values():
        for begin in range(0, len(group), size):
            yield [left[at] for at in group[begin : begin + size]]


def candidates(args: argparse.Namespace) -> list[Candidate]:
    """Return the candidates of a call; raises ``UsageError`` for unknown sides and names of one file."""
    found = [candidate(text) for text in args.candidate]
    sides = [name.strip() for name in (args.sides or "").split(";") if name.strip()]
    if bool(sides) != (args.frontier is not None):
        raise UsageError("--frontier WORK and --sides belong together")
    known = {line["side"]: line for line in finished(args.frontier)} if args.frontier else {}
    for name in sides:
        if name not in known:
            raise UsageError(f"--sides: no finished side '{name}'{nearest(name, sorted(known))}")
        found.append(candidate(f"{name}={args.frontier / known[name]['artifact']}"))
    if not found:
        raise UsageError("no candidate: give --candidate NAME=PATH, or --frontier and --sides")
    files = [answers_file(args.out, each.name) for each in found]
    for each, file in zip(found, files, strict=True):
        if file.name == ".jsonl" or files.count(file) > 1:
            raise UsageError(f"candidate '{each.name}': its answers would lie in {file}; take another name")
    return found


# Command line -------------------------------------------------------------------------------------------


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a call."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.compression_tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prompts, generating, scoring = map(commands.add_parser, ("prompts", "generate", "score"))
    for each in (prompts, scoring):
        each.add_argument("--suite", required=True, help="tasks or suites, with commas")
    generating.add_argument("--suite", default="", help="tasks or suites, with commas; else --prompts")
    for each in (prompts, generating, scoring):
        each.add_argument("--data", type=Path, help="folder of benchmarks")
    for each in (prompts, generating):
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--limit", type=int, help="items of each task")
    generating.add_argument("--prompts", type=Path, help="what `prompts` wrote")
    generating.add_argument("--model", type=Path, required=True, help="dense folder of all candidates")
    generating.add_argument("--candidate", action="append", default=[], metavar="NAME=PATH")
    generating.add_argument("--frontier", type=Path, help="--work of compression_frontier")
    generating.add_argument("--sides", help="its finished sides, with semicolons")
    generating.add_argument("--batch", type=int, default=128, help="rows at once")
    generating.add_argument("--leg", type=int, default=192, help="tokens after which ended rows leave")
    generating.add_argument("--dtype", choices=("bf16", "fp32"), help="default: bf16 on a GPU, else fp32")
    scoring.add_argument("--answers", type=Path, required=True)
    scoring.add_argument("--baseline", default="dense", help="name of the candidate that others stand beside")
    scoring.add_argument("--out", type=Path, help="file of one JSON object a line")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns an exit code."""
    try:
        args = parsed(arguments)
        return {"prompts": run_prompts, "generate": run_generate, "score": run_score}[args.command](args)
    except CogumiError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def run_prompts(args: argparse.Namespace) -> int:
    """Write what models are to be asked."""
    found = questions_of(args.suite, args.data, args.limit)
    write_questions(found, args.out)
    print(f"{args.out}: {len(found)} prompts")
    return 0


def run_generate(args: argparse.Namespace) -> int:
    """Answer the questions with one candidate after the other; 1 when one of them could not be run."""
    if (args.prompts is None) == (not args.suite):
        raise UsageError("generate: give either --prompts FILE or --suite NAMES")
    args.dtype = args.dtype or ("bf16" if compute_device() == "cuda" else "fp32")
    found = candidates(args)
    questions = (
        read_questions(args.prompts, args.limit)
        if args.prompts
        else questions_of(args.suite, args.data, args.limit)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    left_out = 0
    for each in found:
        try:
            generate(each, questions, args)
        except UsageError:
            raise
        except RunError as error:
            print(f"{each.name}: left out: {error}", file=sys.stderr, flush=True)
            left_out += 1
        except Exception:
            # Whatever a library raises, the candidates after it are worth their machine's time.
            print(f"{each.name}: left out:", file=sys.stderr)
            traceback.print_exc()
            left_out += 1
    return 1 if left_out else 0


def run_score(args: argparse.Namespace) -> int:
    """Score the answers, print the table and write its lines."""
    rows = score(args.answers, args.suite, args.data, args.baseline)
    table(rows)
    if args.out:
        write_atomic(args.out, "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
