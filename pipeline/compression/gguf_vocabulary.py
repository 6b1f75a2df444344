"""The tokenizer of a model folder as metadata of a GGUF file: byte-level BPE, with its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from evals.backends.tokenization import first_line, pre_tokenizer_name

_FILES = ("tokenizer.json", "tokenizer_config.json")


def add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Add vocabulary, merges, special tokens and chat template of ``folder`` to a ``gguf.GGUFWriter``.

    Token numbers that the tokenizer does not use up to ``vocab_size`` become unused padding. Raises
    ``RunError`` for missing or broken files and for a pre-tokeniser that llama.cpp does not know.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        # Without the second, begin and end tokens and the chat template would be lost without a word.
        raise RunError(f"{folder / missing[0]}: missing; copy it from the model that these weights are of")
    path = folder / "tokenizer.json"
    pre = pre_tokenizer_name(path)
    described = _described(path)
    special = {entry["content"]: bool(entry["special"]) for entry in described["added_tokens"]}
    tokens: dict[int, str] = {index: token for token, index in described["model"]["vocab"].items()}
    tokens.update({entry["id"]: entry["content"] for entry in described["added_tokens"]})
    if max(tokens) >= vocab_size:
        raise RunError(f"{path}: {max(tokens) + 1} tokens for a model of {vocab_size}")
    kinds = [_kind(tokens.get(index), special) for index in range(vocab_size)]
    tokens |= {index: f"[PAD{index}]" for index in range(vocab_size) if index not in tokens}
    merges = [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens[index] for index in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    _add_special(writer, folder)


def _described(path: Path) -> dict[str, Any]:
    import json

    # `pre_tokenizer_name` read the file before: it is JSON of a tokenizer.
    described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return described


def _kind(token: str | None, special: dict[str, bool]) -> Any:
    import gguf

    if token is None:
        return gguf.TokenType.UNUSED
    if token not in special:
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if special[token] else gguf.TokenType.USER_DEFINED


def _add_special(writer: Any, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        # transformers raises a dozen unrelated classes for a broken configuration.
        raise RunError(f"{folder}: its tokenizer cannot be read ({first_line(error)})") from error
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    # What the tokenizer itself adds to a plain text; a chat template writes its own.
    begin = tokenizer.bos_token_id
    writer.add_add_bos_token(begin is not None and tokenizer("a").input_ids[0] == begin)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
