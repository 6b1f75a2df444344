"""Numbers that gates compare with a bar and that are no scores: their names, and what each of them is.

A gate file may name these only, so that a misspelt metric is an error and not "not measured" for ever. The
stage or evaluation that measures one gives it under this name.
"""

from __future__ import annotations

from evals.tasks import DOMAINS

# Rates over the same items that a suite scores; the engine tests them on the evidence that is there. Every
# other metric is measured elsewhere and comes with its own interval.
ITEM_RATES = ("truncation_rate", "error_rate")

EXACT = ("bytes_download", "bytes_resident", "parameters", "bits_per_weight")
"""Counts that a stage or a subject knows, without any error."""

SIZES = ("bytes_download", "bytes_resident")
"""Bytes of the judged model itself, for which arithmetic knows a least."""

_DATA = {
    "questions": "questions that were kept",
    **{
        f"questions_{domain}_{difficulty}": f"{difficulty} questions of the domain {domain} that were kept"
        for domain in DOMAINS
        for difficulty in ("easy", "hard")
    },
    "cells_off_quota": "cells of domain and difficulty whose count is not the quota",
    "near_duplicate_share": "share of questions that nearly repeat an earlier one",
    "benchmark_leaks": "training rows that contain an item of a benchmark",
    "judge_score_min": "lowest score, 1 to 10, that the judge gave to a question that was kept",
    "answers_easy": "easy questions with an answer that was kept",
    "answers_hard": "hard questions with an answer that was kept",
    "answers_invalid": "kept answers that are malformed or cut off",
    "reasoning_structure_rate": "share of hard answers with draft, critique, revision and answer in place",
    "rows_merged": "rows of the merged data set",
    "rows_missing_or_twice": "questions that are not in the merged data set exactly once",
    "schema_errors": "rows of the merged data set that do not fit its record format",
    "usd_validation": "dollars spent on validating questions",
    "usd_answers_easy": "dollars spent on easy answers",
    "usd_answers_hard": "dollars spent on hard answers",
}

DATA_METRICS = frozenset(_DATA)
"""Counts and costs of a merged data set, which the stage that merges it measures on its rows."""

_SPEED = {
    "acceptance_rate": "share of drafted tokens that the base accepts, on held-out prompts",
    "greedy_mismatches": "prompts whose speculative greedy answer differs from the plain one",
    "speculative_speedup": "tokens a second with speculative decoding over those without, in one run",
    "speculative_tokens_per_second": "tokens a second with speculative decoding",
    "layer_skip_share": "share of layers that the mixture-of-depths router skips, over all tokens",
    "mixture_of_depths_speedup": "tokens a second with the router over those without, in one run",
    "mixture_of_depths_tokens_per_second": "tokens a second with speculation and the router",
    "router_bytes": "bytes of the mixture-of-depths router's file",
    "kv_int4_speedup": "tokens a second with an INT4 cache over those without, in one run",
    "kv_int4_tokens_per_second": "tokens a second with speculation, the router and an INT4 cache",
    "tokens_per_second": "tokens a second of the judged model as it stands",
}

_COMPRESSION = {
    "bytes_download": "bytes of the judged model's files as they are downloaded",
    "bytes_resident": "bytes of the judged model's weights in memory",
    "bits_per_weight": "bits of the files for each weight",
    "parameters": "weights of the judged model",
    "draft_bytes_download": "bytes of the draft model's files as they are downloaded",
    "draft_bytes_resident": "bytes of the draft model's weights in memory",
    "sparsity": "share of zero weights in the pruned linear layers",
    "pruned_bytes_download": "bytes of the pruned base before quantisation",
    "awq_bytes_download": "bytes of the base in AWQ",
    "draft_awq_bytes_download": "bytes of the draft model in AWQ",
    "zstd_bytes_download": "bytes of the base's GGUF file after zstd",
    "recovery_gain": "what the recovery adapter adds to the score, as a share of it",
    "kl": "nats per answer token by which a compressed model diverges from the dense one",
    "answer_perplexity": "perplexity of held-out answers",
    "top1_agreement": "share of answer tokens at which a compressed model and the dense one favour the same",
    "ece": "expected calibration error of the model's confidence in its answers, after scaling",
}

_SYSTEM = {
    "code_adapter_bytes": "bytes of the code modifier's file",
    "reasoning_adapter_bytes": "bytes of the reasoning modifier's file",
    "automation_adapter_bytes": "bytes of the automation modifier's file",
    "base_weights_changed": "weights of the base that differ after training a modifier",
    "usd_code_modifier": "dollars spent on the code modifier, all tiers of teachers",
    "usd_reasoning_modifier": "dollars spent on the reasoning modifier, all tiers of teachers",
    "usd_automation_modifier": "dollars spent on the automation modifier, all tiers of teachers",
    "route_latency_p95_ms": "milliseconds that routing takes before the first token, 95th percentile",
    "route_accuracy_gain": "accuracy of the router above the better of always-base and nearest neighbours",
    "escalation_accuracy": "share of answers that the detector rightly escalates or keeps",
    "few_shot_gain": "share that meta-learning adds to few-shot scores on unseen families of tasks",
    "meta_tasks": "tasks that meta-learning was trained on",
    "meta_iterations": "outer steps of meta-learning",
    "system_bytes_download": "bytes of everything that a user downloads",
    "digest_mismatches": "published files whose digest differs after download",
    "api_client_failures": "calls of the providers' own client that the inference API answers wrongly",
}

_PEOPLE = {
    "human_raters": "raters who finished their share of the study",
    "human_tasks": "tasks that those raters rated in the study",
}

PEOPLE_METRICS = frozenset(_PEOPLE)
"""Counts of a closed study of people."""

METRICS: dict[str, str] = {
    "truncation_rate": "share of answers that the token limit cut off",
    "error_rate": "share of items that failed to be answered",
    **_DATA,
    **_SPEED,
    **_COMPRESSION,
    **_SYSTEM,
    **_PEOPLE,
}
"""Every metric by name, with its meaning; money is in dollars, sizes are in bytes, decimal."""
