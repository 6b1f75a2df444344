"""A trained model as a few-shot learner: it adapts to a few rows and is scored on others.

Covered: models trained in full, and LoRA adapters on their base, of which the adapter alone is adapted;
scores by probability and by checked answers. Adaptation is plain gradient descent, as in the inner loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import log_softmax

from cogumi.errors import RunError
from evals.backends.loading import DType, LoadedModel, load_model, quiet_transformers
from evals.backends.tokenization import first_line
from evals.micro import verify
from pipeline.training.answer_loss import AnswerLoss, at_least_float32
from pipeline.training.attention import PACKED
from pipeline.training.chat import ChatEncoder
from pipeline.training.data import Encoded, Example
from pipeline.training.meta import ParameterLoss, Params, adapt
from pipeline.training.meta_objective import head_of
from pipeline.training.packing import PackedBatch, pack

ScoreName = Literal["probability", "answers"]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the data, as text and as token ids."""

    example: Example
    encoded: Encoded


class Learner:
    """A model with parameters that adapt; ``adapter``: a LoRA adapter's folder, for the base in ``folder``.

    ``head_alone``: only the head adapts, as ANIL trained it. Raises ``RunError`` for a model or an adapter
    that cannot be read, ``UsageError`` where there is no head to adapt.
    """

    def __init__(
        self, folder: Path, adapter: Path | None, *, dtype: DType, device: str, head_alone: bool
    ) -> None:
        self._loaded = load_model(folder, dtype=dtype, device=device)
        self._model = _with_adapter(self._loaded, adapter) if adapter else self._loaded.model
        self._answer = AnswerLoss(self._model).eval()
        self._loss = ParameterLoss(self._answer)
        self._names = head_of(self._answer, self._loss) if head_alone else list(self._loss.params)
        self._device = torch.device(device)
        self._probabilities = _Probabilities(self._answer)

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self._loaded.context

    def encoder(self, *, include_reasoning: bool) -> ChatEncoder:
        """Return what renders rows as this model reads them."""
        return ChatEncoder(self._loaded.tokenizer, self._loaded.stop_ids, include_reasoning=include_reasoning)

    @property
    def own(self) -> dict[str, torch.Tensor]:
        """The parameters as they were trained."""
        return {name: parameter.detach() for name, parameter in self._loss.params.items()}

    def adapted(self, support: Sequence[Row], steps: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """Return the parameters after ``steps`` steps of gradient descent on the support rows."""
        batch = self._pack(support)
        return adapt(self._loss, self._loss.params, [batch] * steps, learning_rate, self._names)[0]

    def loss(self, params: Params, rows: Sequence[Row]) -> float:
        """Return the mean loss per answer token."""
        with torch.no_grad():
            return float(self._loss(params, self._pack(rows)))

    def scores(self, params: Params, rows: Sequence[Row], score: ScoreName, max_tokens: int) -> list[float]:
        """Return each row's score in [0, 1] under ``params``.

        ``probability``: the mean probability of its answer's tokens, each after the right ones before it;
        ``answers``: 1 where the greedy answer is right by the micro-domain's own check, else 0.
        """
        if score == "answers":
            with self._wearing(params):
                told = self._answers(rows, max_tokens)
            return [float(verify(row.example.question, text)) for row, text in zip(rows, told, strict=True)]
        named = {f"answer.{name}": value for name, value in params.items()}
        with torch.no_grad():
            every = torch.func.functional_call(self._probabilities, named, (self._pack(rows),))
        sizes = [len(row.encoded.ids) - row.encoded.answer_start for row in rows]
        return [float(part.mean()) for part in every.split(sizes)]

    def _pack(self, rows: Sequence[Row]) -> PackedBatch:
        return pack([row.encoded for row in rows], self._device)

    @contextlib.contextmanager
    def _wearing(self, params: Params) -> Iterator[None]:
        """Put ``params`` into the model, with an attention that can generate; take both back afterwards."""
        before = {name: value.clone() for name, value in self.own.items()}
        self._answer.base.set_attn_implementation("sdpa")
        try:
            self._write(params)
            yield
        finally:
            self._write(before)
            self._answer.base.set_attn_implementation(PACKED)

    def _write(self, params: Params) -> None:
        with torch.no_grad():
            for name, parameter in self._loss.params.items():
                parameter.copy_(params[name])

    def _answers(self, rows: Sequence[Row], max_tokens: int) -> list[str]:
        """Answer greedily, all rows in one batch that is padded on the left."""
        from transformers import GenerationConfig

        ends, tokenizer = self._loaded.stop_ids, self._loaded.tokenizer
        pad = min(ends, default=0)
        prompts = [list(row.encoded.ids[: row.encoded.answer_start]) for row in rows]
        width = max(len(ids) for ids in prompts)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        # What a configuration leaves open, transformers takes from the model's own.
        self._answer.base.generation_config = GenerationConfig()
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=min(max_tokens, self._loaded.context - width),
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
        )
        with torch.inference_mode(), quiet_transformers():
            output: Any = self._model.generate(
                input_ids=ids, attention_mask=mask.to(self._device), generation_config=config
            )
        texts = []
        for tokens in output[:, width:].tolist():
            end = next((place for place, token in enumerate(tokens) if token in ends), None)
            texts.append(str(tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip())
        return texts


class _Probabilities(torch.nn.Module):
    """The probability of each answer token of a packed batch, (S,)."""

    def __init__(self, answer: AnswerLoss) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        logits = at_least_float32(self.answer.head(self.answer.hidden(batch)))
        chosen: torch.Tensor = log_softmax(logits, dim=-1).gather(1, batch.targets.unsqueeze(1))
        return chosen.squeeze(1).exp()


def _with_adapter(loaded: LoadedModel, folder: Path) -> Any:
    from peft import PeftModel

    try:
        with quiet_transformers():
            return PeftModel.from_pretrained(loaded.model, folder, is_trainable=True)
    except Exception as error:
        # peft and torch raise a dozen unrelated classes for an adapter that does not fit.
        raise RunError(f"{folder}: does not fit its base ({first_line(error)})") from error
