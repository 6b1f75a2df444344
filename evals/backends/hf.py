"""Greedy answers and likelihoods through transformers: batched, left-padded, in the model's own template."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.devices import compute_device
from cogumi.errors import RunError
from evals.backends.continuations import cut_at, encode_prompt, plain_text, stops_of
from evals.backends.hf_likelihood import next_token_logprobs, score_pairs
from evals.backends.hf_stopping import StopTexts, decode
from evals.backends.loading import SMALL_MODEL, DType, load_model, quiet_transformers
from evals.backends.tokenization import clean
from evals.types import Generation, Likelihood, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Rows per batch where the caller names none: small models are bound by the overhead of a step, large ones
# on a CPU by arithmetic (padding costs), on a GPU by memory.
_BATCH_TINY, _BATCH_CPU, _BATCH_GPU = 64, 8, 32


class HFBackend:
    """A transformers model that implements ``evals.types.LogitBackend``.

    ``path`` is a safetensors folder or a GGUF file, ``adapter`` a LoRA adapter's folder for it, merged in
    memory. ``dtype="auto"`` takes the model's own precision on a CPU and bfloat16 on a GPU, but float32
    under 50 M parameters; ``device="auto"`` takes a GPU where there is one. Raises ``RunError`` naming the
    file when it cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        adapter: Path | None = None,
        dtype: DType = "auto",
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise RunError(f"transformers backend needs {error.name}: pip install 'cogumi[all]'") from error
        self._device = compute_device() if device == "auto" else device
        if adapter is None:
            self._loaded = load_model(path, dtype=dtype, device=self._device)
        else:
            from evals.backends.adapters import load_adapted

            self._loaded = load_adapted(path, adapter, dtype=dtype, device=self._device)
        # transformers fills what a fresh configuration leaves open from the model's own: its sampling, its
        # penalty on repetition.
        self._loaded.model.generation_config = transformers.GenerationConfig()
        self._path = path
        self._text = plain_text(self._loaded.tokenizer)
        tiny = self._loaded.parameters < SMALL_MODEL
        default = _BATCH_TINY if tiny else _BATCH_CPU if self._device == "cpu" else _BATCH_GPU
        self._batch_size = batch_size or default
        self._stack = {
            "backend": "hf",
            "device": self._device,
            "dtype": str(self._loaded.model.dtype).removeprefix("torch."),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }

    @property
    def stack(self) -> dict[str, str]:
        """Backend, device, dtype and library versions."""
        return dict(self._stack)

    @property
    def batch_size(self) -> int:
        """Rows that are decoded together."""
        return self._batch_size

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self._loaded.context

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, in the chat template unless it is raw, ready to answer.

        A raw prompt gets what the tokenizer adds to any text (Llama 3: a begin-of-text token). Raises
        ``RunError`` for a chat prompt when the model has no chat template.
        """
        return encode_prompt(prompt, self._loaded.tokenizer, self._text, self._path)

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation]:
        """Answer each prompt greedily, in the order given.

        Rows of like length share a batch. A prompt that leaves no room in the context gives
        ``finish_reason="error"``. ``completion_tokens`` counts the end token and all of a stop text's;
        ``seconds`` is the batch's wall time divided by its rows.
        """
        stops = [stops_of(prompt) for prompt in prompts]
        encoded = [self.encode(prompt) for prompt in prompts]
        answers: dict[int, Generation] = {}
        roomy: list[int] = []
        for index, ids in enumerate(encoded):
            room = self._loaded.context - len(ids)
            if room <= 0:
                answers[index] = Generation("", "error", len(ids), 0, 0.0)
            elif room < max_tokens:
                # Alone, so that no other row is cut at this row's end of context.
                answers[index] = self._generate_batch([ids], [stops[index]], room)[0]
            else:
                roomy.append(index)
        roomy.sort(key=lambda index: len(encoded[index]))
        for start in range(0, len(roomy), self._batch_size):
            rows = roomy[start : start + self._batch_size]
            batch = self._generate_batch(
                [encoded[index] for index in rows], [stops[index] for index in rows], max_tokens
            )
            answers.update(zip(rows, batch, strict=True))
        return [answers[index] for index in range(len(prompts))]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return how likely each (context, continuation) is; see ``PlainText.pair`` for how they are split.

        ``seconds`` is the batch's wall time divided by its pairs.
        """
        encoded = [self._text.pair(*pair, self._loaded.context) for pair in pairs]
        return score_pairs(self._loaded.model, encoded, device=self._device, batch_size=self._batch_size)

    def answer_logprobs(self, prompt: Prompt, answer: str) -> npt.NDArray[np.float32]:
        """Return log-probabilities (T + 1, vocabulary) at each of the answer's T tokens and after the last.

        An answer that goes beyond the context is read as far as it fits. Raises ``RunError`` when already
        the prompt does not fit.
        """
        asked = self.encode(prompt)
        tokens = asked + self._text.encode(clean(answer), False)
        if not 0 < len(asked) <= self.context:
            raise RunError(f"{self._path}: a prompt of {len(asked)} tokens in a context of {self.context}")
        tokens = tokens[: self.context]
        return next_token_logprobs(self._loaded.model, tokens, len(tokens) - len(asked) + 1, self._device)

    def close(self) -> None:
        """Free the model's memory; the backend cannot be used afterwards."""
        import torch

        del self._loaded
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _generate_batch(
        self, rows: list[list[int]], stops: list[tuple[str, ...]], max_tokens: int
    ) -> list[Generation]:
        import torch
        from transformers import GenerationConfig

        end_ids = self._loaded.stop_ids
        pad = min(end_ids, default=0)
        width = max(len(row) for row in rows)
        started = time.perf_counter()
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self._device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._device)
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(end_ids) or None,
            pad_token_id=pad,
        )
        watch = StopTexts(self._loaded.tokenizer, stops, end_ids)
        with torch.inference_mode(), quiet_transformers():
            output: Any = self._loaded.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=[watch] if any(stops) else None,
            )
        completions = output[:, width:].tolist()
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            # Past a stop text there is only padding, or what other rows still had to say.
            self._generation(
                len(row), completion[: watch.ended.get(at)], end_ids | watch.ids[at], stops[at], seconds
            )
            for at, (row, completion) in enumerate(zip(rows, completions, strict=True))
        ]

    def _generation(
        self,
        prompt_tokens: int,
        completion: list[int],
        end_ids: frozenset[int],
        stops: tuple[str, ...],
        seconds: float,
    ) -> Generation:
        end = next((i for i, token in enumerate(completion) if token in end_ids), None)
        text = decode(self._loaded.tokenizer, completion[:end])
        before = cut_at(text, stops)
        if end is None and before is None:
            return Generation(text, "length", prompt_tokens, len(completion), seconds)
        counted = len(completion) if end is None else end + 1
        return Generation(text if before is None else before, "stop", prompt_tokens, counted, seconds)
