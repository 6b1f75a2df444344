"""Likelihoods in llama.cpp: texts that begin alike are a tree, decoded once; its stem stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from evals.backends.continuations import EncodedPair

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Branches that one decode holds: an item of multiple choice has four to ten.
_SEQUENCES = 16
# Tokens of one decode, llama.cpp's own default for both sizes of batch.
_BATCH = 512
# Cells for branches, beside those of one text as long as the context.
_BRANCH_CELLS = 1024


@dataclass(slots=True)
class _Node:
    """One token of the tree: it is read once for all texts that share it and all before it."""

    token: int
    position: int
    texts: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)
    """(text, next token) to score after this one."""


class Scorer:
    """Reads token sequences with a llama.cpp context of its own, beside the one that generates.

    Sequence 0 of the cache holds what was read last; the longest beginning that it shares with the next
    texts is not read again. ``model`` is llama.cpp's pointer, ``context`` in tokens, ``adapter`` the pointer
    of a LoRA adapter of that model.
    """

    def __init__(self, model: Any, *, context: int, threads: int, adapter: Any = None) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._cells = context + _BRANCH_CELLS
        # A recurrent state cannot be cut back to a shared beginning, nor be part of several sequences.
        recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        self._sequences = 1 if recurrent else _SEQUENCES
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = self._cells
        settings.n_batch = settings.n_ubatch = _BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max = self._sequences
        settings.kv_unified = True
        # Whole, so that a window's beginning is still there when the cache is cut back.
        settings.swa_full = True
        # As llama-cpp-python sets it for the context that generates.
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise RunError(f"llama.cpp made no context of {self._cells} tokens: too little memory?")
        if adapter is not None:
            apply_adapter(self._context, adapter)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, self._sequences)
        self._vocabulary: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._cached: tuple[int, ...] = ()

    def groups(self, pairs: Sequence[EncodedPair]) -> Iterator[Sequence[EncodedPair]]:
        """Cut pairs, in order, into groups for ``score``: those that share at least half of their text."""
        start, common, branches = 0, 0, 0
        for index, pair in enumerate(pairs):
            length, members = len(pair.fed), index - start
            shared = common_prefix(pairs[start].fed[:common], pair.fed)
            grown = branches + (common - shared) * members + length - shared
            fits = members < self._sequences and shared + grown <= self._cells
            if members and fits and 2 * shared >= min(length, common):
                common, branches = shared, grown
                continue
            if members:
                yield pairs[start:index]
            start, common, branches = index, length, 0
        if pairs:
            yield pairs[start:]

    def score(self, group: Sequence[EncodedPair]) -> list[tuple[float, bool]]:
        """Return (sum of log-probabilities, greedy) of each continuation; ``group``: one of ``groups``."""
        import numpy as np

        texts = [pair.fed for pair in group]
        stem = texts[0]
        for other in texts[1:]:
            stem = stem[: common_prefix(stem, other)]
        # A token whose logits are wanted is read again: the cache keeps none.
        reused = self._begin(stem, min(pair.first for pair in group), len(group))
        logprobs, greedy = [0.0] * len(group), [True] * len(group)
        for node, logits in self._read(_tree(group, reused)):
            top = float(logits.max())
            normaliser = top + float(np.log(np.exp(logits - top).sum()))
            best = int(logits.argmax())
            for text, token in node.wanted:
                logprobs[text] += float(logits[token]) - normaliser
                greedy[text] &= token == best
        self._end(texts)
        return list(zip(logprobs, greedy, strict=True))

    def next_token_logprobs(self, tokens: Sequence[int], rows: int) -> npt.NDArray[np.float32]:
        """Return log-probabilities (rows, vocabulary) of what follows each of the last ``rows`` tokens."""
        import numpy as np

        text, first = tuple(tokens), len(tokens) - rows
        reused = self._begin(text, first, 1)
        nodes = [_Node(token, at, [0]) for at, token in enumerate(text) if at >= reused]
        for node in nodes[first - reused :]:
            node.wanted.append((0, -1))
        found = np.empty((rows, self._vocabulary), dtype=np.float32)
        for node, logits in self._read(nodes):
            shifted = logits - logits.max()
            found[node.position - first] = shifted - np.log(np.exp(shifted).sum())
        self._end([text])
        return found

    def close(self) -> None:
        """Free the cache; the model itself is its owner's to free, afterwards."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)

    def _begin(self, stem: Sequence[int], limit: int, texts: int) -> int:
        """Cut the cache back to what ``stem`` shares with it, give that to all texts, return its length."""
        reused = min(common_prefix(self._cached, stem), limit)
        # Nothing is known of the cache until the new texts are read in full.
        self._cached = ()
        if reused == 0 or not self._lib.llama_memory_seq_rm(self._memory, 0, reused, -1):
            self._lib.llama_memory_clear(self._memory, False)
            return 0
        for text in range(1, texts):
            self._lib.llama_memory_seq_cp(self._memory, 0, text, -1, -1)
        return reused

    def _read(self, nodes: Sequence[_Node]) -> Iterator[tuple[_Node, npt.NDArray[np.float32]]]:
        """Decode the nodes and yield those that are wanted with their logits, valid until the next one."""
        import numpy as np

        for start in range(0, len(nodes), _BATCH):
            part = nodes[start : start + _BATCH]
            batch = self._batch
            batch.n_tokens = len(part)
            for at, node in enumerate(part):
                batch.token[at], batch.pos[at] = node.token, node.position
                batch.n_seq_id[at], batch.logits[at] = len(node.texts), bool(node.wanted)
                for slot, text in enumerate(node.texts):
                    batch.seq_id[at][slot] = text
            if code := self._lib.llama_decode(self._context, batch):
                raise RunError(f"llama.cpp could not read {len(part)} tokens (llama_decode returned {code})")
            for at, node in enumerate(part):
                if node.wanted:
                    pointer = self._lib.llama_get_logits_ith(self._context, at)
                    yield node, np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))

    def _end(self, texts: Sequence[tuple[int, ...]]) -> None:
        for text in range(1, len(texts)):
            self._lib.llama_memory_seq_rm(self._memory, text, -1, -1)
        self._cached = texts[0]


def apply_adapter(context: Any, adapter: Any) -> None:
    """Add a LoRA adapter to everything that a llama.cpp context computes; raises ``RunError``."""
    import ctypes

    import llama_cpp

    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise RunError("llama.cpp could not add the adapter to its context")


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences share from their beginning."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)


def _tree(group: Sequence[EncodedPair], reused: int) -> list[_Node]:
    """Return the nodes beyond the first ``reused`` tokens, every one after its parent, branch by branch."""
    nodes: list[_Node] = []
    children: dict[tuple[int, int], int] = {}
    for text, pair in enumerate(group):
        parent = -1
        for position, (token, following) in enumerate(pairwise(pair.tokens)):
            if position < reused:
                continue
            key = (parent, token)
            if key not in children:
                children[key] = len(nodes)
                nodes.append(_Node(token, position))
            parent = children[key]
            nodes[parent].texts.append(text)
            if position >= pair.first:
                nodes[parent].wanted.append((text, following))
    return nodes
