"""What must be alike before figures of two models are compared, and what is told where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

# What a stack says that belongs to the artifact or follows from its size, not to how it was run.
_OF_THE_ARTIFACT = ("dtype", "threads")


def differing(documents: Sequence[Document], ignored: Sequence[str] = ()) -> list[str]:
    """Return the keys whose values are not the same in all documents, sorted."""
    names = sorted({name for document in documents for name in document})
    return [
        name
        for name in names
        if name not in ignored and len({str(document.get(name)) for document in documents}) > 1
    ]


def distinct(origins: Iterable[Document]) -> list[Document]:
    """Return the documents without repeats, in their order."""
    kept: list[Document] = []
    for one in origins:
        if one not in kept:
            kept.append(one)
    return kept


def speeds_differ_by(first: Sequence[Document], second: Sequence[Document]) -> str | None:
    """Say why the speeds of two models tell nothing about the models, or return None.

    ``first``, ``second``: the origins of each one's answers, machine and stack (``EvidenceFile.origins``).
    """
    machines = {str(origin.get("machine") or "") for origin in (*first, *second)}
    if "" in machines:
        return "the machine of older evidence is not recorded"
    if len(machines) > 1:
        return f"machines differ ({'; '.join(sorted(machines))})"
    stacks = [origin.get("stack", {}) for origin in (*first, *second)]
    names = differing([stack for stack in stacks if stack], ignored=_OF_THE_ARTIFACT)
    return f"stacks differ ({', '.join(names)})" if names else None


def stacks_changed(origins: Sequence[Document]) -> list[str]:
    """Return what changed of machine and stack while one model's answers were collected."""
    return differing([{"machine": origin.get("machine"), **origin.get("stack", {})} for origin in origins])
