"""Stage ``compression.gguf``: a Llama folder as one GGUF file, quantised by llama.cpp.

Covered: LlamaForCausalLM, tied or not, llama3 and linear RoPE scaling, byte-level BPE. Written with the
``gguf`` package alone, one tensor in memory at a time; quantised in process, no llama.cpp binary. Not
covered: other architectures, SentencePiece, importance matrices.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogumi.errors import RunError, UsageError, nearest
from cogumi.stage import Settings, Stage, StageContext, StageResult
from cogumi.store import disk_error

if TYPE_CHECKING:
    import numpy as np

FloatType = Literal["f16", "bf16", "f32"]


class GGUFSettings(Settings):
    """``type`` is llama.cpp's name of a file type; ``dtype`` the precision of the file it is made from."""

    type: str = "Q4_K_M"
    dtype: FloatType = "f16"


@dataclass(frozen=True, slots=True)
class GGUFSummary:
    """What a GGUF file holds, read back from it."""

    bytes: int
    parameters: int
    bits_per_weight: float
    """Bits of all tensors over parameters; metadata and vocabulary are not counted."""
    fallback_tensors: list[str]
    """Tensors that could not take a K- or I-quant because their rows are no multiple of its 256 block."""


def run(settings: GGUFSettings, ctx: StageContext) -> StageResult:
    """Export input ``model`` as ``model.gguf`` of the wanted type."""
    from evals.backends.tokenization import tokenizer_digest

    source, out = ctx.inputs["model"].path, ctx.out / "model.gguf"
    ctx.progress.update(0, 2)
    if settings.type.lower() in ("f16", "bf16", "f32"):
        export_gguf(source, out, dtype=settings.type.lower())  # type: ignore[arg-type]
    else:
        file_type(settings.type)
        intermediate = ctx.scratch / "unquantised.gguf"
        export_gguf(source, intermediate, dtype=settings.dtype)
        ctx.progress.update(1, 2)
        quantize_gguf(intermediate, out, settings.type)
        intermediate.unlink()
    ctx.progress.update(2, 2)
    summary = summarize_gguf(out, settings.type)
    facts = {
        "type": settings.type.upper(),
        "bytes": summary.bytes,
        "parameters": summary.parameters,
        "bits_per_weight": summary.bits_per_weight,
        "fallback_tensors": summary.fallback_tensors,
        "tokenizer_digest": tokenizer_digest(source / "tokenizer.json"),
    }
    return StageResult("gguf", facts)


def export_gguf(model_dir: Path, out: Path, *, dtype: FloatType) -> None:
    """Write a LlamaForCausalLM safetensors folder as GGUF; matrices in ``dtype``, vectors in float32.

    Raises ``RunError`` naming the file for another architecture, an unknown pre-tokeniser or RoPE scaling,
    a broken file or a full disk; ``out`` appears only when it is complete.
    """
    import gguf

    config = _read_json(model_dir / "config.json")
    _check_supported(config, model_dir)
    partial = out.with_name(f".{out.name}.partial")
    try:
        writer = gguf.GGUFWriter(partial, "llama")
        _add_hyperparameters(writer, config, model_dir, dtype)
        _add_tokenizer(writer, model_dir, int(config["vocab_size"]))
        # Twice over the tensors: first their shapes for the header, then their values.
        for name, values, kind in _tensors(model_dir, config, dtype):
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values, _ in _tensors(model_dir, config, dtype):
            writer.write_tensor_data(values)
        writer.close()
        partial.rename(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)


def quantize_gguf(src: Path, out: Path, type: str) -> None:
    """Quantise a float GGUF file in process to llama.cpp's file type ``type`` (``Q4_K_M``, ``Q8_0``, …).

    Raises ``UsageError`` for an unknown type, ``RunError`` with llama.cpp's own reason when it fails.
    """
    import llama_cpp

    from evals.backends.gguf import silence_llama_cpp

    partial = out.with_name(f".{out.name}.partial")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type(type)
    params.nthread = len(os.sched_getaffinity(0))
    complaints = silence_llama_cpp()
    llama_cpp.llama_backend_init()
    try:
        status = llama_cpp.llama_model_quantize(
            str(src).encode(), str(partial).encode(), ctypes.byref(params)
        )
        if status != 0:
            reason = complaints[-1] if complaints else f"llama.cpp returned {status}"
            raise RunError(f"{src}: cannot be quantised to {type} ({reason})")
        partial.rename(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)


def file_type(name: str) -> int:
    """Return llama.cpp's number of a quantised file type; raises ``UsageError`` for an unknown name."""
    import llama_cpp

    prefix = "LLAMA_FTYPE_MOSTLY_"
    known = {
        key.removeprefix(prefix): value for key, value in vars(llama_cpp).items() if key.startswith(prefix)
    }
    if name.upper() not in known:
        raise UsageError(f"unknown GGUF type '{name}'{nearest(name.upper(), sorted(known))}")
    return int(known[name.upper()])


def summarize_gguf(path: Path, type: str) -> GGUFSummary:
    """Read sizes and types of all tensors back from a GGUF file that was made as ``type``."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    stored = sum(int(tensor.n_bytes) for tensor in tensors)
    # K- and I-quants code blocks of 256 along a row; llama.cpp takes another type where they do not fit.
    fallback = [
        f"{tensor.name}: {tensor.tensor_type.name}"
        for tensor in tensors
        if len(tensor.shape) == 2 and tensor.shape[0] % gguf.QK_K and tensor.tensor_type.name != type.upper()
    ]
    return GGUFSummary(path.stat().st_size, parameters, round(8 * stored / parameters, 4), fallback)


def _check_supported(config: dict[str, Any], folder: Path) -> None:
    architectures = config.get("architectures") or ["none"]
    if architectures != ["LlamaForCausalLM"]:
        raise RunError(f"{folder / 'config.json'}: only LlamaForCausalLM is exported, not {architectures[0]}")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise RunError(f"{folder / 'config.json'}: biases in attention or MLP are not exported")


def _add_hyperparameters(writer: Any, config: dict[str, Any], folder: Path, dtype: FloatType) -> None:
    import gguf

    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_file_type(types[dtype])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] not in ("default", "llama3"):
        raise RunError(f"{folder / 'config.json'}: RoPE scaling '{rope['rope_type']}' is not exported")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return theta and scaling, from the form of transformers 5 or the older one."""
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    return {"rope_type": rope.get("type", "default"), **rope}


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """Return what llama.cpp divides each RoPE frequency by: Llama 3.1's scaling, shape (head_dim / 2,)."""
    import numpy as np

    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray = (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)
    return factors


def _tensors(folder: Path, config: dict[str, Any], dtype: FloatType) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Yield GGUF name, values and GGML type (None: as the array says) of each tensor, one in memory."""
    import gguf
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    rope = _rope(config)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_factors(rope, _head_dim(config)), None
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                        continue
                    target = names.get_name(name, try_suffixes=(".weight",))
                    if target is None:
                        raise RunError(f"{file}: tensor {name} has no place in a Llama GGUF")
                    values = tensors.get_tensor(name).to(torch.float32).numpy()
                    permute = _permutation(name, config)
                    values = permute(values) if permute else values
                    if values.ndim < 2 or dtype == "f32":
                        yield target, values, None
                    elif dtype == "f16":
                        yield target, values.astype(np.float16), None
                    else:
                        kind = gguf.GGMLQuantizationType.BF16
                        yield target, gguf.quants.quantize(values, kind), kind
        except SafetensorError as error:
            raise RunError(f"{file}: cut short or not safetensors ({error})") from error


def _permutation(name: str, config: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """llama.cpp rotates neighbouring pairs where transformers rotates halves: reorder the rows of q and k."""
    if name.endswith("q_proj.weight"):
        heads = config["num_attention_heads"]
    elif name.endswith("k_proj.weight"):
        heads = config["num_key_value_heads"]
    else:
        return None

    def permute(weight: np.ndarray) -> np.ndarray:
        rows, columns = weight.shape
        halves = weight.reshape(heads, 2, rows // heads // 2, columns)
        return halves.swapaxes(1, 2).reshape(rows, columns)

    return permute


def _add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    import gguf
    from transformers import AutoTokenizer

    from evals.backends.tokenization import pre_tokenizer_name

    path = folder / "tokenizer.json"
    pre = pre_tokenizer_name(path)
    described = _read_json(path)
    special = {entry["content"]: bool(entry["special"]) for entry in described["added_tokens"]}
    tokens: dict[int, str] = {index: token for token, index in described["model"]["vocab"].items()}
    tokens.update({entry["id"]: entry["content"] for entry in described["added_tokens"]})
    if max(tokens) >= vocab_size:
        raise RunError(f"{path}: {max(tokens) + 1} tokens for a model of {vocab_size}")
    kinds = []
    for index in range(vocab_size):
        token = tokens.setdefault(index, f"[PAD{index}]")
        if token not in special:
            padding = token == f"[PAD{index}]"
            kinds.append(gguf.TokenType.UNUSED if padding else gguf.TokenType.NORMAL)
        else:
            kinds.append(gguf.TokenType.CONTROL if special[token] else gguf.TokenType.USER_DEFINED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens[index] for index in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    # What the tokenizer itself adds to a plain text; a chat template writes its own.
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: missing or not JSON ({error})") from error
    return value


GGUF = Stage(
    name="compression.gguf",
    version=1,
    title="Export to GGUF and quantise",
    settings=GGUFSettings,
    run=run,
    inputs=("model",),
)
