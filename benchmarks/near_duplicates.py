"""Near-de-duplication of 300,000 questions: time, memory, and recall and precision against brute force.

The questions are the real ones of the data folder and deterministic variants of them
(``near_duplicate_texts``). They arrive one by one, as while generating: each is looked for among all earlier
ones, then added. Truth is the exact Jaccard similarity of token trigrams of a random 20,000 of them with
every earlier one of the 300,000, by sparse matrix products (scipy). The peer is datasketch's ``MinHashLSH``
with 128 permutations, as it comes, and set for recall with its candidates verified by us;
``pip install datasketch``, else it is left out.

    python -m benchmarks.near_duplicates --data ../shared/data
    python -m benchmarks.near_duplicates --total 60000 --sample 5000 --json near.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.near_duplicate_texts import KINDS, Question, real_questions, with_variants
from benchmarks.timing import machine
from evals.lint.duplicates import NEAR_THRESHOLD, QuestionIndex, tokens_of
from evals.lint.stats import data_stats

FloatArray = npt.NDArray[np.float64]

THRESHOLD = 0.7
SECONDS, LEAST, MEMORY = 90, 0.95, 400
BROKEN, BROKEN_DISTINCT = "broken/questions_cumulative_coding.jsonl", 6685
BLOCK = 100  # questions at a time: 100 x some 60,000 that share a trigram x 12 bytes is some 70 MB
EDGES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Outcome(NamedTuple):
    """What one method found: ``similar`` is 0 where no earlier question is near, else its similarity.

    ``seconds`` of wall clock and of ``cpu``; ``memory`` is the most resident MiB of the process, ``before``
    those before the first question.
    """

    similar: FloatArray
    seconds: float
    cpu: float
    memory: int
    before: int


def shingles_of(text: str) -> set[str]:
    """Return the token trigrams of a text, by the definition alone."""
    tokens = tokens_of(text)
    return {" ".join(tokens[at : at + 3]) for at in range(max(1, len(tokens) - 2))}


def resident(name: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` of this process in MiB; ``ru_maxrss`` would tell the parent's as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{name}:")[1].split()[0]) // 1024


def texts_in(path: Path) -> Iterator[str]:
    """Yield the texts of a file of JSON strings."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def by_index(path: Path) -> Outcome:
    """Look for each text in our index and add it."""
    index, similar = QuestionIndex(THRESHOLD), []
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    for text in texts_in(path):
        match = index.closest(text)
        similar.append(0.0 if match is None else match.similarity)
        index.add(text)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Outcome(np.array(similar), seconds, cpu, resident("VmHWM"), before)


def by_minhash(path: Path, verify: bool) -> Outcome:
    """Look for each text among the buckets of datasketch; unverified candidates count as similarity 1.

    With ``verify`` a miss weighs nine times a false candidate when it chooses its bands.
    """
    from datasketch import MinHash, MinHashLSH

    weights = (0.1, 0.9) if verify else (0.5, 0.5)  # of false candidates and of misses; its default is even
    lsh = MinHashLSH(threshold=THRESHOLD, num_perm=128, weights=weights)
    sets: list[set[str]] = []
    similar = []
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    for number, text in enumerate(texts_in(path)):
        shingles = shingles_of(text)
        sketch = MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in shingles])
        candidates = lsh.query(sketch)
        lsh.insert(number, sketch)
        best = float(bool(candidates))
        if verify:
            best = max((jaccard(shingles, sets[other]) for other in candidates), default=0.0)
            sets.append(shingles)
        similar.append(best if best >= THRESHOLD - 1e-9 else 0.0)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Outcome(np.array(similar), seconds, cpu, resident("VmHWM"), before)


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the Jaccard similarity of two sets."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def in_its_own_process(method: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """Run a method in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(method, *arguments).result()


def brute_force(texts: Sequence[str], sample: npt.NDArray[np.int64]) -> FloatArray:
    """Return for each sampled text its greatest similarity to any earlier one of all, by definition."""
    from scipy.sparse import csr_array

    known: dict[str, int] = {}
    columns: list[int] = []
    starts = [0]
    for text in texts:
        columns += [known.setdefault(shingle, len(known)) for shingle in shingles_of(text)]
        starts.append(len(columns))
    sizes = np.diff(starts)
    ones = np.ones(len(columns), dtype=np.int32)
    matrix = csr_array((ones, columns, starts), shape=(len(texts), len(known)))
    transposed = matrix.T.tocsr()
    greatest = np.zeros(len(sample))
    for first in range(0, len(sample), BLOCK):
        rows = sample[first : first + BLOCK]
        shared = (matrix[rows] @ transposed).tocoo()
        query = rows[shared.row]
        similarity = shared.data / (sizes[query] + sizes[shared.col] - shared.data)
        earlier = shared.col < query
        np.maximum.at(greatest, first + shared.row[earlier], similarity[earlier])
    return greatest


def report(title: str, found: Outcome, truth: FloatArray, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Print and return time, memory, recall and precision of a method."""
    near, true = found.similar[sample] > 0, truth >= THRESHOLD - 1e-9
    hits = int(np.sum(near & true))
    recall, precision = hits / max(1, int(true.sum())), hits / max(1, int(near.sum()))
    row = {
        "method": title,
        "seconds": round(found.seconds, 1),
        "cpu_seconds": round(found.cpu, 1),
        "memory_mib": found.memory,
        "memory_before_mib": found.before,
        "recall": recall,
        "precision": precision,
        "near": int(np.sum(found.similar > 0)),
    }
    print(
        f"{title:<34} {found.seconds:6.1f} s ({found.cpu:.1f} s CPU), {found.memory:>5} MiB, "
        f"recall {recall:.4f}, precision {precision:.4f}, {row['near']:,} near",
        flush=True,
    )
    return row


def compare(real: Sequence[str], total: int, sampled: int, seed: int) -> list[dict[str, Any]]:
    """Run all methods on the same texts; the first row, ours, tells whether the figures hold."""
    texts = with_variants(real, total, seed)
    sample = np.array(sorted(random.Random(seed).sample(range(len(texts)), min(sampled, len(texts)))))
    kinds = ", ".join(f"{share:.0%} {kind.__name__}" for share, kind in KINDS)
    print(f"{len(texts):,} texts: {len(real):,} real, the others variants ({kinds}); threshold {THRESHOLD}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        runs = [("QuestionIndex", in_its_own_process(by_index, path))]
        if importlib.util.find_spec("datasketch"):
            runs.append(("datasketch MinHashLSH", in_its_own_process(by_minhash, path, False)))
            runs.append(("datasketch, for recall, verified", in_its_own_process(by_minhash, path, True)))
        else:
            print("datasketch is not installed (pip install datasketch): no peer")
    start = time.perf_counter()
    truth = brute_force(texts, sample)
    seconds = time.perf_counter() - start
    counts, _ = np.histogram(truth, [*EDGES, 1.1])
    told = ", ".join(f"{low:g}: {n:,}" for low, n in zip(EDGES, counts.tolist(), strict=True))
    print(f"brute force: {len(sample):,} of them against every earlier one, {seconds:.0f} s")
    print(f"  their greatest similarity to an earlier one, from … on: {told}")
    rows = [report(title, found, truth, sample) for title, found in runs]
    ours = runs[0][1].similar[sample]
    wrong = int(np.sum(np.abs(ours - np.where(truth >= THRESHOLD - 1e-9, truth, 0)) > 1e-9))
    print(f"{'':<34} similarity other than brute force's: {wrong} of {len(sample):,}")
    rows[0]["other_similarity"] = wrong
    rows[0]["holds"] = (
        rows[0]["seconds"] <= SECONDS
        and min(rows[0]["recall"], rows[0]["precision"]) >= LEAST
        and rows[0]["memory_mib"] <= MEMORY
    )
    asked = f"<= {SECONDS} s, recall and precision >= {LEAST}, <= {MEMORY} MiB"
    print(f"{'':<34} {asked}: {'holds' if rows[0]['holds'] else 'DOES NOT HOLD'}")
    return rows


def real_ones(real: Sequence[Question]) -> dict[str, Any]:
    """Print and return what is found in the real questions, each against all before it."""
    found: dict[str, Any] = {"questions": len(real)}
    index = QuestionIndex(THRESHOLD)
    first: list[Question] = []
    exact, near, close, domains, cells = Counter[str](), Counter[str](), Counter[str](), 0, 0
    examples: list[tuple[float, str, str]] = []
    for question in real:
        match = index.closest(question.text)
        number = index.add(question.text)
        if match is not None and match.number == number:
            exact[question.domain] += 1
            continue
        first.append(question)
        if match is None:
            continue
        other = first[match.number]
        near[question.domain] += 1
        close[question.domain] += match.similarity >= NEAR_THRESHOLD - 1e-9
        domains += other.domain != question.domain
        cells += other.cell != question.cell
        examples.append((match.similarity, question.text, other.text))
    print(f"\n{len(real):,} real questions, each against all before it")
    print(f"  {'domain':<16} {'exact':>7} {f'near {THRESHOLD:g}':>9} {f'near {NEAR_THRESHOLD:g}':>9}")
    for domain in [*sorted({question.domain for question in real}), "all"]:
        row = [n.total() if domain == "all" else n[domain] for n in (exact, near, close)]
        found[domain] = dict(zip(("exact", "near", "near_at_lint_threshold"), row, strict=True))
        print(f"  {domain:<16} {row[0]:>7,} {row[1]:>9,} {row[2]:>9,}")
    print(f"  of the near ones the closest is of another domain for {domains:,}, another cell for {cells:,}")
    found |= {"across_domains": domains, "across_cells": cells}
    for similarity, text, earlier in random.Random(0).sample(examples, min(3, len(examples))):
        print(f"    {similarity:.2f}  {text}\n          {earlier}")
    return found


def broken_file(data: Path) -> dict[str, Any]:
    """Print and return the distinct rows of the predecessor's broken file, by ``cogumi data stats``."""
    stats = data_stats(data / BROKEN)
    holds = stats.distinct == BROKEN_DISTINCT
    told = f"{stats.distinct:,} distinct of {stats.rows:,}, {stats.near_duplicates:,} of these near"
    print(f"\n{BROKEN}: {told}")
    print(f"  asked {BROKEN_DISTINCT:,}: {'holds' if holds else 'DOES NOT HOLD'}")
    return {"rows": stats.rows, "distinct": stats.distinct, "near": stats.near_duplicates, "holds": holds}


def main(argv: Sequence[str] | None = None) -> int:
    """Print all of it; exit 1 when a figure does not hold, 2 without data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("COGUMI_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default), help="the data folder (COGUMI_DATA)")
    parser.add_argument("--total", type=int, default=300_000, help="questions, variants included")
    parser.add_argument("--sample", type=int, default=20_000, help="questions that brute force judges")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    real = real_questions(options.data)
    if not real:
        told = f"no teacher/questions/*.jsonl in {options.data}: name the data folder by --data"
        print(told, file=sys.stderr)
        return 2
    print(f"machine: {machine()}")
    methods = compare([question.text for question in real], options.total, options.sample, options.seed)
    found, broken = real_ones(real), broken_file(options.data)
    if options.json:
        document = {"methods": methods, "real": found, "broken": broken}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if methods[0]["holds"] and broken["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
