"""Chat prompts and tokenizers: the parts of a model that transformers and llama.cpp must agree on.

Covered: rendering the model's own chat template, end-of-turn tokens, the three byte-level BPE
pre-tokenisers that we import and export. Not covered: SentencePiece vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogumi.digest import digest_of
from cogumi.errors import RunError
from evals.types import Prompt

# Names that published chat models give to the token that ends an assistant turn; a model may declare only
# its end of text as eos (Llama 3: <|end_of_text|>) and end its turns with one of these.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|end|>")

# The regular expression of Llama 3's tokenizer.json, which llama.cpp calls "llama-bpe".
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = ("gpt-2", "smollm", "llama-bpe")
"""Values of GGUF's ``tokenizer.ggml.pre`` that we can build and recognise."""


def pre_tokenizer(name: str) -> Any:
    """Return the ``tokenizers`` pre-tokeniser that llama.cpp knows under this name.

    Raises ``RunError`` for a name outside ``PRE_TOKENIZERS``.
    """
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel
    if name == "gpt-2":
        return byte_level(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False, use_regex=True)])
    if name == "llama-bpe":
        words = pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), behavior="isolated")
        return pre_tokenizers.Sequence([words, byte_level(add_prefix_space=False, use_regex=False)])
    raise RunError(f"pre-tokeniser '{name}' is not supported (known: {', '.join(PRE_TOKENIZERS)})")


def pre_tokenizer_name(tokenizer_json: Path) -> str:
    """Return llama.cpp's name of the pre-tokeniser that a ``tokenizer.json`` describes.

    Raises ``RunError`` when the file is unreadable or describes none of ``PRE_TOKENIZERS``, because a GGUF
    with the wrong name would silently split text otherwise than the model was trained on.
    """
    from tokenizers import Tokenizer

    try:
        described = json.loads(Tokenizer.from_file(str(tokenizer_json)).to_str())
    # `tokenizers` raises bare Exception for every unreadable file.
    except Exception as error:
        raise RunError(f"{tokenizer_json}: not a readable tokenizer ({first_line(error)})") from error
    if described["model"]["type"] != "BPE":
        raise RunError(f"{tokenizer_json}: a {described['model']['type']} vocabulary; only byte-level BPE")
    if described.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        kind = described["normalizer"]["type"]
        raise RunError(f"{tokenizer_json}: normalizer {kind} has no counterpart in llama.cpp")
    found = _essence(described["pre_tokenizer"])
    for name in PRE_TOKENIZERS:
        if found == _essence(_as_json(pre_tokenizer(name))):
            return name
    raise RunError(
        f"{tokenizer_json}: its pre-tokeniser is none of {', '.join(PRE_TOKENIZERS)}, which llama.cpp knows"
    )


def tokenizer_digest(tokenizer_json: Path) -> str:
    """Return the digest of what a ``tokenizer.json`` maps: tokens with their ids, and merges in order.

    Two models of one digest read the same ids as the same text. Raises ``RunError`` for a broken file.
    """
    try:
        return described_digest(json.loads(tokenizer_json.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{tokenizer_json}: not a readable tokenizer ({first_line(error)})") from error


def described_digest(described: Any) -> str:
    """Return the same digest of a ``tokenizer.json``'s content."""
    tokens = dict(described["model"]["vocab"])
    tokens.update({entry["content"]: entry["id"] for entry in described["added_tokens"]})
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in described["model"].get("merges", [])]
    return digest_of({"tokens": tokens, "merges": merges})


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer so that equal ones give equal bytes, wherever and however it was loaded."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    # How it was loaded, and by which settings of the environment: not what it is.
    for name in ("is_local", "local_files_only", "name_or_path"):
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


TEMPLATE_DATE = "26 Jul 2024"
"""The date that templates which tell one are given: prompts must not change from day to day."""


def render(template: str, prompt: Prompt, *, bos: str, eos: str) -> str:
    """Render a prompt through a chat template as ``apply_chat_template`` would, ready to answer.

    A conversation that ends with the assistant's turn is left open within it. Lone
    surrogates, which no tokenizer accepts, become ``?``. Raises ``RunError`` when the template fails.
    """
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [{"role": turn.role, "content": clean(turn.content)} for turn in prompt.messages]
    answering = prompt.messages[-1].role == "assistant"
    try:
        rendered, _ = render_jinja_template(
            conversations=[conversation],
            chat_template=template,
            add_generation_prompt=not answering,
            continue_final_message=answering,
            bos_token=bos,
            eos_token=eos,
            # Llama-3.1's own default; Llama-3.2's template would write today's date into every prompt.
            date_string=TEMPLATE_DATE,
        )
    except TemplateError as error:
        raise RunError(f"the model's chat template cannot be rendered ({first_line(error)})") from error
    return str(rendered[0])


def no_chat_template(path: Path) -> RunError:
    """Return the error of a chat prompt for a model that has no chat template."""
    return RunError(
        f"{path}: the model has no chat template; only completion and likelihood tasks measure it"
    )


def clean(text: str) -> str:
    """Return the text with every lone surrogate, which no tokenizer accepts, as ``?``."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for messages of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def tokenizer_from_gguf(metadata: dict[str, Any]) -> Any:
    """Build the transformers tokenizer of a byte-level BPE vocabulary stored in GGUF metadata.

    Own code because transformers' converter drops ``tokenizer.ggml.pre`` (SmolLM2's digits) and takes a
    wrong end-of-text token. ``metadata`` holds the arrays ``tokenizer.ggml.tokens`` and ``.merges`` in full.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    name = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    # GGUF token types: 3 is control, 4 is user-defined (gguf.TokenType).
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (3, 4):
            tokenizer.add_tokens([AddedToken(token, special=kind == 3, normalized=False)])
    special = {
        f"{role}_token": tokens[int(metadata[key])]
        for role, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
        )
        if key in metadata
    }
    # Where the file does not say, llama.cpp begins Llama 3's texts with the token and no others.
    if "bos_token" in special and metadata.get("tokenizer.ggml.add_bos_token", name == "llama-bpe"):
        bos = special["bos_token"]
        number = int(metadata["tokenizer.ggml.bos_token_id"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return fast


def _as_json(part: Any) -> Any:
    from tokenizers import Tokenizer, models

    holder = Tokenizer(models.BPE())
    holder.pre_tokenizer = part
    return json.loads(holder.to_str())["pre_tokenizer"]


def _essence(part: Any) -> Any:
    """Drop what changes offsets or spelling but never the split itself."""
    if isinstance(part, dict):
        if part.get("type") == "Sequence" and len(part["pretokenizers"]) == 1:
            return _essence(part["pretokenizers"][0])
        return {key: _essence(value) for key, value in part.items() if key != "trim_offsets"}
    return [_essence(entry) for entry in part] if isinstance(part, list) else part
