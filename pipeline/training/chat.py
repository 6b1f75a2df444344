"""Training rows as token ids: the question as the model will see it, the answer, and the end of its turn.

Covered: loss on the assistant's words and end token only, found by a training chat template where there is
one (``pipeline.training.templates``) and else as what an answered question has beyond an open one; answers
that hold the text of a special token; whether a tokenizer is the model's. Not covered: several turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from evals.backends.tokenization import TEMPLATE_DATE
from pipeline.training.data import Encoded
from pipeline.training.templates import training_template

if TYPE_CHECKING:
    from pipeline.training.data import Example


class ChatEncoder:
    """Turns an example into token ids exactly as the model will see the question when it is asked.

    ``stop_ids`` are the ids that end a turn; what a template writes after the last of them is left out. The
    ids of a question are those of ``apply_chat_template`` with the generation prompt and ``TEMPLATE_DATE``.
    Raises ``RunError`` when the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], *, include_reasoning: bool) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._include_reasoning = include_reasoning
        try:
            self._own = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise RunError(
                "the model has no chat template; train an instruct model, or add chat_template.jinja to it"
            ) from error
        self._marked = training_template(self._own)
        special = [entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special]
        # The longest first: one special token's text may begin another's.
        special.sort(key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def encode(self, example: Example) -> Encoded:
        """Encode prompt and answer so that no token spans their border.

        Text of a special token in an answer is encoded as text, and never as that token; in a question it is
        what it is when the model is asked. Raises ``RunError`` naming the question when the template fails,
        ends no turn, or renders an answered question otherwise than an open one.
        """
        from jinja2.exceptions import TemplateError

        from evals.backends.tokenization import clean, first_line

        target = clean(self._target(example))
        asked = [{"role": "user", "content": clean(example.question)}]
        try:
            prompt, _ = self._render(self._own, asked, open_turn=True)
            said = self._said(prompt, [*asked, {"role": "assistant", "content": target}])
        except TemplateError as error:
            raise RunError(
                f"question {example.question_id}: the chat template cannot be rendered ({first_line(error)})"
            ) from error
        start = self._ids(prompt)
        if self._special is not None and self._special.search(target):
            answer = self._ids_of_text(said, target, example.question_id)
        else:
            answer = self._ended(self._continued(prompt, start, said))
        return Encoded((*start, *answer), len(start))

    def _target(self, example: Example) -> str:
        if not self._include_reasoning or example.reasoning is None:
            return example.answer
        # The form of plan 1.4.
        return f"<thinking>{example.reasoning}</thinking><answer>{example.answer}</answer>"

    # Text --------------------------------------------------------------------------------------------

    def _render(
        self, template: str, turns: list[dict[str, str]], *, open_turn: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the rendered conversation and where in it the marked words of the assistant stand."""
        from transformers.utils.chat_template_utils import render_jinja_template

        # As ``apply_chat_template`` calls it.
        rendered, spans = render_jinja_template(
            conversations=[turns],
            chat_template=template,
            add_generation_prompt=open_turn,
            return_assistant_tokens_mask=template is self._marked,
            **{**self._tokenizer.special_tokens_map, "date_string": TEMPLATE_DATE},
        )
        return str(rendered[0]), spans[0] if spans else []

    def _said(self, prompt: str, answered: list[dict[str, str]]) -> str:
        """Return what the assistant says after ``prompt``, the end of its turn included."""
        if self._marked is not None:
            whole, spans = self._render(self._marked, answered, open_turn=False)
            begin, end = spans[-1]
        else:
            whole, _ = self._render(self._own, answered, open_turn=False)
            begin, end = len(prompt), len(whole)
        if whole[:begin] != prompt:
            raise RunError("the chat template renders an answered question otherwise than an open one")
        return whole[begin:end]

    # Ids ---------------------------------------------------------------------------------------------

    def _ids(self, text: str, *, as_text: bool = False) -> tuple[int, ...]:
        # Not verbose: the caller deals with rows that are longer than the context.
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=as_text, verbose=False)
        return tuple(found.input_ids)

    def _continued(self, prompt: str, start: tuple[int, ...], said: str) -> tuple[int, ...]:
        """Return the ids of ``said`` after ``prompt``.

        As in the whole text where that splits at their border: a SentencePiece vocabulary puts a space before
        a text of its own. Else, as when the answer begins with a line break, on their own.
        """
        whole = self._ids(prompt + said)
        return whole[len(start) :] if whole[: len(start)] == start else self._ids(said)

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids up to the last end token."""
        ends = [index for index, token in enumerate(ids) if token in self._stop_ids]
        if not ends:
            raise RunError("the chat template ends the assistant's turn with no end token of the model")
        return ids[: ends[-1] + 1]

    def _ids_of_text(self, said: str, target: str, question: str) -> tuple[int, ...]:
        """Return the ids of an answer that holds a special token's text, which stays text."""
        words = next((text for text in (target, target.strip()) if said.startswith(text)), None)
        ids = self._ids(words, as_text=True) if words else ()
        if not words or self._stop_ids.intersection(ids):
            raise RunError(
                f"question {question}: its answer holds the text of a special token, which this tokenizer or "
                "chat template cannot keep as text; remove the row or write the token otherwise"
            )
        return (*ids, *self._ended(self._ids(said[len(words) :])))


def check_vocabulary(tokenizer: Any, model: Any, facts: Mapping[str, Any] | None = None) -> None:
    """Raise ``RunError`` in one line when a tokenizer is not the model's.

    That is when an id is beyond the rows of the model's embedding, or when the tokenizer's digest is not the
    ``tokenizer_digest`` among ``facts``, those of the model's artifact.
    """
    from evals.backends.tokenization import described_digest

    rows = int(model.get_input_embeddings().weight.shape[0])
    token, number = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if number >= rows:
        raise RunError(
            f"the tokenizer is not the model's: it has {token!r} as id {number}, and the embedding {rows} "
            "rows; put the model's own tokenizer files into its folder"
        )
    recorded = (facts or {}).get("tokenizer_digest")
    if recorded is None:
        return
    found = described_digest(json.loads(tokenizer.backend_tokenizer.to_str()))
    if found != recorded:
        raise RunError(
            f"the tokenizer is not the one that the model was made with: digest {found[:19]}, recorded "
            f"{str(recorded)[:19]}; delete the artifact and run the step that made it again"
        )
