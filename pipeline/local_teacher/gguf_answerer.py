"""A real model behind the wire formats: a GGUF file through llama.cpp, one prompt at a time.

A long system text that requests share is read once. What is kept of it was read by itself, from an empty
cache, and the rest of each prompt after it: so an answer at temperature 0, or with a seed, is the same
whatever was asked before. Not covered: several prompts at once, tools, images.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from cogumi.errors import RunError, UsageError
from cogumi.subjects import resolve
from cogumi.workspace import Workspace
from evals.backends.gguf import GGUFBackend
from evals.types import Message, Prompt
from pipeline.local_teacher.answers import Ask, EndingError, Finish, Reply

# What llama.cpp's own server takes where a request names nothing; 1.0 is both providers' temperature.
_TEMPERATURE = 1.0
_TOP_P = 0.95
_TOP_K = 40
_MIN_P = 0.05


def find_gguf(name: str, workspace: Workspace) -> Path:
    """Return the GGUF file that a path, a known model's name or a digest of the workspace names.

    Raises ``UsageError`` when nothing is called so, ``RunError`` when it is no GGUF file.
    """
    path = Path(name)
    if not path.is_file():
        path = resolve(name, workspace, "gguf").path or path
    with path.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise RunError(f"{path}: not a GGUF file (its first bytes are wrong); name a .gguf model")
    return path


class GgufAnswerer:
    """Answers requests with a GGUF model; safe to call from several threads, which wait in turn."""

    def __init__(self, path: Path, context: int) -> None:
        self._model = _Model(path, n_ctx=context)
        # Refused here, at the start, and not at each request: a model without a chat template.
        self._model.encode(Prompt.user("?"))
        self._ending = threading.Event()
        # One thread, because llama.cpp's context belongs to one at a time; the pool's queue keeps the order.
        self._worker = ThreadPoolExecutor(1, "gguf")

    def reply(self, ask: Ask) -> Reply:
        """Answer one request with the tokens that the model counts; raises ``UsageError`` where none fits."""
        try:
            return self._worker.submit(self._reply, ask).result()
        except (RuntimeError, CancelledError):
            if self._ending.is_set():
                raise EndingError from None
            raise

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, without a chat template."""
        return len(self._model.encode(Prompt((Message("user", text),), raw=True)))

    def close(self) -> None:
        """End the answer under way, refuse those that wait, and free the memory."""
        self._ending.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._model.close()

    def _reply(self, ask: Ask) -> Reply:
        turns = tuple(Message(role, text) for role, text in ask.messages)  # type: ignore[arg-type]
        system = (Message("system", ask.system),) if ask.system else ()
        prompt = Prompt((*system, *turns), stop=ask.stop)
        self._model.ask, self._model.shared = ask, self._model.shared_by(system)
        self._model.ending = self._ending
        found = self._model.generate([prompt], max_tokens=ask.max_tokens)[0]
        if found.finish_reason == "error":
            most = self._model.context
            raise UsageError(
                f"This model's maximum context length is {most} tokens, and the messages have "
                f"{found.prompt_tokens}."
            )
        finish: Finish = "length" if found.finish_reason == "length" else "stop"
        return Reply(found.text, finish, found.prompt_tokens, found.completion_tokens)


class _Model(GGUFBackend):
    """The evaluation's backend with sampling and with a cache of the shared beginning."""

    ask: Ask
    shared: list[int]
    """Tokens that the prompt shares with all prompts of its system text."""
    ending: threading.Event
    _kept: list[int] | None = None
    """What the cache begins with, read from empty by itself."""

    def __init__(self, path: Path, *, n_ctx: int) -> None:
        super().__init__(path, n_ctx=n_ctx)
        self._shared: dict[str, list[int]] = {}

    def shared_by(self, system: tuple[Message, ...]) -> list[int]:
        """Return the tokens with which every prompt of a system message begins."""
        if not system:
            return []
        text = system[0].content
        if text not in self._shared:
            self._shared.clear()
            # Two first letters, so that no token that reaches into the question is taken for shared.
            one, two = (self.encode(Prompt((*system, Message("user", word)))) for word in ("A", "7"))
            same = 0
            while same < min(len(one), len(two)) and one[same] == two[same]:
                same += 1
            self._shared[text] = one[:same]
        return self._shared[text]

    def _greedy(self, ids: list[int]) -> Iterator[int]:
        ask, shared = self.ask, self.shared
        begins = len(ids) > len(shared) and ids[: len(shared)] == shared
        rest = self._rest(ids, shared if begins else [])
        self._llama.set_seed(ask.seed if ask.seed is not None else int(ask.digest[:7], 16))
        tokens = self._llama.generate(
            rest,
            top_k=_TOP_K,
            top_p=_TOP_P if ask.top_p is None else ask.top_p,
            min_p=_MIN_P,
            temp=_TEMPERATURE if ask.temperature is None else ask.temperature,
            repeat_penalty=1.0,
            reset=False,
        )
        for token in tokens:
            if self.ending.is_set():
                raise EndingError
            yield token

    def _rest(self, ids: list[int], shared: list[int]) -> list[int]:
        """Bring the cache to hold ``shared`` alone and return the tokens that are still to be read."""
        size = len(shared)
        # A recurrent model cannot forget the end of what it read: then all is read again.
        if size and self._kept == shared and self._llama._ctx.kv_cache_seq_rm(-1, size, -1):
            self._llama.n_tokens = size
            return ids[size:]
        self._kept = None
        self._llama.reset()
        if size:
            self._llama.eval(shared)
            self._kept = shared
        return ids[size:]
