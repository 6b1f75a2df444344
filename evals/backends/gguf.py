"""Greedy answers and likelihoods from a GGUF file through llama.cpp, in process."""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from evals.backends.adapter_base import check_gguf_base
from evals.backends.continuations import PlainText, stops_of
from evals.backends.gguf_scoring import Scorer, apply_adapter
from evals.backends.tokenization import clean, first_line, no_chat_template, render
from evals.types import FinishReason, Generation, Likelihood, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Tokens of context where the caller names none: the longest IFEval prompt and its answer fit, and the
# cache of a small model stays under 100 MB.
DEFAULT_CONTEXT = 4096
TINY_FILE = 32_000_000
"""Bytes under which one thread is the fastest: a file of 1 M weights takes 2 ms a step on one, and up to
400 ms on two when another process wants the second core."""
# Longest text of one token: Llama 3 has one of 128 spaces, other vocabularies longer runs.
_PIECE_BYTES = 1024
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_complaints: deque[str] = deque(maxlen=8)
_listeners: list[Callable[[str], None]] = []
_callback: Any = None


class GGUFBackend:
    """A llama.cpp model that implements ``evals.types.LogitBackend``.

    The chat template is the file's own ``tokenizer.chat_template``, rendered as transformers does.
    ``n_ctx`` is in tokens and is cut to what the model was trained for; ``threads`` defaults to the
    processors that this process may use. ``adapter`` is a LoRA adapter in GGUF, added to the model and never
    merged. Raises ``RunError`` naming the file when it cannot be loaded, or the adapter was made for another.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int | None = None,
        threads: int | None = None,
        adapter: Path | None = None,
    ) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise RunError(f"GGUF backend needs {error.name}: pip install 'cogumi[all]'") from error
        if not path.is_file():
            raise RunError(f"{path}: no such file")
        silence_llama_cpp()
        # A step of a tiny model is shorter than handing it to a second thread and waiting for that one.
        tiny = path.is_file() and path.stat().st_size < TINY_FILE
        workers = threads or (1 if tiny else len(os.sched_getaffinity(0)))
        try:
            self._llama = llama_cpp.Llama(
                str(path),
                n_ctx=n_ctx or DEFAULT_CONTEXT,
                n_threads=workers,
                n_threads_batch=workers,
                seed=0,
                verbose=False,
            )
        except (ValueError, RuntimeError, OSError) as error:
            reason = _complaints[0] if _complaints else first_line(error)
            raise RunError(f"{path}: cut short or not a GGUF model ({reason})") from error
        self._lib = llama_cpp
        self._path = path
        self._adapter = self._with_adapter(adapter) if adapter is not None else None
        metadata = self._llama.metadata
        self._template: str = metadata.get("tokenizer.chat_template", "")
        self._context: int = min(self._llama.n_ctx(), int(self._llama._model.n_ctx_train()))
        self._vocab = self._llama._model.vocab
        self._pieces: dict[int, bytes] = {}
        bos, eos = self._llama.token_bos(), self._llama.token_eos()
        self._bos, self._eos = self._token_text(bos), self._token_text(eos)
        self._text = PlainText(self._tokenize, self._bos, max(bos if bos >= 0 else eos, 0))
        self._workers = workers
        self._scorer: Scorer | None = None
        self._stack = {
            "backend": "gguf",
            "device": "cpu",
            "dtype": _file_type(metadata.get("general.file_type")),
            "llama-cpp-python": llama_cpp.__version__,
            "threads": str(workers),
        }
        if adapter is not None:
            self._stack["adapter"] = "lora"

    @property
    def stack(self) -> dict[str, str]:
        """Backend, device, quantisation, library version and threads."""
        return dict(self._stack)

    @property
    def batch_size(self) -> int:
        """Always 1: prompts are answered one after another, so an evaluation may stop after any of them."""
        return 1

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self._context

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, in the chat template unless it is raw, ready to answer.

        A raw prompt begins with the token that the file says (``tokenizer.ggml.add_bos_token``). Raises
        ``RunError`` for a chat prompt when the file has no chat template.
        """
        if prompt.raw:
            return self._text.whole(clean(prompt.text))
        if not self._template:
            raise no_chat_template(self._path)
        # The template writes the begin-of-text token itself.
        return self._tokenize(render(self._template, prompt, bos=self._bos, eos=self._eos), False)

    def logits(self, tokens: Sequence[int]) -> Any:
        """Return the next-token logits after ``tokens`` as a float32 array of the vocabulary's size."""
        import llama_cpp
        import numpy as np

        self._llama.reset()
        self._llama.eval(tokens)
        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),)).copy()

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation]:
        """Answer each prompt greedily, in the order given, each from an empty cache.

        So an answer does not depend on the prompts before it. A prompt that leaves no room in the context
        gives ``finish_reason="error"``. ``completion_tokens`` counts the end token and all of a stop text's.
        """
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return how likely each (context, continuation) is; see ``PlainText.pair`` for how they are split.

        Neighbours with a common beginning (the choices of one item) are read in one decode, what they share
        once; what the latest pairs of an earlier call share with them is still in the cache.
        """
        encoded = [self._text.pair(*pair, self._context) for pair in pairs]
        scorer = self._scoring()
        found: list[Likelihood] = []
        for group in scorer.groups(encoded):
            started = time.perf_counter()
            scores = scorer.score(group)
            seconds = (time.perf_counter() - started) / len(group)
            for pair, (logprob, greedy) in zip(group, scores, strict=True):
                read = len(pair.tokens) - pair.scored
                found.append(Likelihood(logprob, greedy, pair.scored, read, seconds))
        return found

    def answer_logprobs(self, prompt: Prompt, answer: str) -> npt.NDArray[np.float32]:
        """Return log-probabilities (T + 1, vocabulary) at each of the answer's T tokens and after the last.

        An answer that goes beyond the context is read as far as it fits. Raises ``RunError`` when already
        the prompt does not fit.
        """
        asked = self.encode(prompt)
        tokens = asked + self._tokenize(clean(answer), False)
        if not 0 < len(asked) <= self._context:
            raise RunError(f"{self._path}: a prompt of {len(asked)} tokens in a context of {self._context}")
        tokens = tokens[: self._context]
        return self._scoring().next_token_logprobs(tokens, len(tokens) - len(asked) + 1)

    def close(self) -> None:
        """Free the model's memory; the backend cannot be used afterwards."""
        if self._scorer is not None:
            self._scorer.close()
            self._scorer = None
        self._llama.close()

    def _with_adapter(self, path: Path) -> Any:
        """Add the adapter to the context that generates; llama.cpp frees it with the model."""
        if not path.is_file():
            raise RunError(f"{path}: no such file")
        adapter = self._lib.llama_adapter_lora_init(self._llama._model.model, str(path).encode())
        if not adapter:
            reason = _complaints[-1] if _complaints else "llama.cpp gave no reason"
            self._llama.close()
            raise RunError(f"{path}: not a LoRA adapter in GGUF for {self._llama.model_path} ({reason})")
        try:
            check_gguf_base(self._path, path)
        except RunError:
            self._llama.close()
            raise
        apply_adapter(self._llama.ctx, adapter)
        return adapter

    def _scoring(self) -> Scorer:
        # A second cache, as large as the first: only where likelihoods are asked for.
        if self._scorer is None:
            model = self._llama._model.model
            self._scorer = Scorer(model, context=self._context, threads=self._workers, adapter=self._adapter)
        return self._scorer

    def _answer(self, prompt: Prompt, max_tokens: int) -> Generation:
        started = time.perf_counter()
        ids = self.encode(prompt)
        room = self._context - len(ids)
        if room <= 0:
            return Generation("", "error", len(ids), 0, time.perf_counter() - started)
        stops = stops_of(prompt)
        texts = [stop.encode() for stop in stops]
        ends = {token for stop in stops for token in self._special(stop)}
        completion = bytearray()
        count = 0
        reason: FinishReason = "length"
        for token in self._greedy(ids):
            count += 1
            if token in ends or self._lib.llama_vocab_is_eog(self._vocab, token):
                reason = "stop"
                break
            piece = self._piece(token)
            completion += piece
            # UTF-8 never matches within a character (RFC 3629), so bytes may be searched for text.
            found = [
                at
                for text in texts
                if (at := completion.find(text, max(0, len(completion) - len(piece) - len(text) + 1))) >= 0
            ]
            if found:
                reason = "stop"
                del completion[min(found) :]
                break
            if count >= min(max_tokens, room):
                break
        text = completion.decode("utf-8", errors="replace")
        return Generation(text, reason, len(ids), count, time.perf_counter() - started)

    def _greedy(self, ids: list[int]) -> Iterator[int]:
        self._llama.reset()
        tokens: Iterator[int] = self._llama.generate(ids, temp=0.0, repeat_penalty=1.0)
        return tokens

    def _tokenize(self, text: str, special: bool) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=special, special=True))

    def _special(self, stop: str) -> list[int]:
        """Return the special token that a stop text is, which would leave no text to find it in."""
        tokens = self._tokenize(stop, False)
        return tokens if len(tokens) == 1 and not self._piece(tokens[0]) else []

    def _piece(self, token: int) -> bytes:
        """Return the text of one token, none for a special one.

        llama-cpp-python's ``detokenize`` loses every token of more than 32 bytes.
        """
        if token not in self._pieces:
            self._pieces[token] = self._written(token, special=False)
        return self._pieces[token]

    def _token_text(self, token: int) -> str:
        return self._written(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    def _written(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        size = self._lib.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, special)
        return buffer.raw[: max(size, 0)]


def silence_llama_cpp() -> deque[str]:
    """Keep llama.cpp's latest errors in a short list, which is returned; print nothing of its log."""
    global _callback
    import llama_cpp

    if _callback is None:

        def keep_errors(level: int, text: bytes, user_data: Any) -> None:
            line = text.decode("utf-8", errors="replace").strip()
            for listener in _listeners:
                listener(line)
            if level == _ERROR_LEVEL and line:
                _complaints.append(line)

        # ctypes keeps no reference to the callback: the module does.
        _callback = llama_cpp.llama_log_callback(keep_errors)
        llama_cpp.llama_log_set(_callback, None)
    _complaints.clear()
    return _complaints


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Within it, ``listener`` gets each piece of llama.cpp's log, of any level, as llama.cpp writes it."""
    silence_llama_cpp()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _file_type(number: str | None) -> str:
    """Return llama.cpp's name of a file's type, by its number in ``general.file_type``."""
    import llama_cpp

    prefix = "LLAMA_FTYPE_"
    names = {value: name for name, value in vars(llama_cpp).items() if name.startswith(prefix)}
    name: str = names.get(int(number or -1), "unknown")
    return name.removeprefix(prefix).removeprefix("MOSTLY_").removeprefix("ALL_")
