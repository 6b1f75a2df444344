"""A Llama folder as one float GGUF file, one tensor in memory at a time.

Covered: LlamaForCausalLM in safetensors, tied or not, llama3 and linear RoPE scaling, byte-level BPE. Not
covered: other architectures, biases, SentencePiece, folders that are quantised already.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogumi.errors import RunError
from cogumi.store import disk_error
from pipeline.compression.gguf_vocabulary import add_tokenizer

if TYPE_CHECKING:
    import torch

FloatType = Literal["f16", "bf16", "f32"]
Tell = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# Activation and biases that llama.cpp's graph for "llama" computes.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# GGUF's names of what stands in transformers' Llama (gguf.tensor_mapping, architecture "llama").
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ROPE_FACTORS = "rope_freqs.weight"


def export_gguf(
    model_dir: Path, out: Path, *, dtype: FloatType, tell: Tell = lambda done, total: None
) -> None:
    """Write a LlamaForCausalLM safetensors folder as GGUF; matrices in ``dtype``, vectors in float32.

    ``tell(done, total)`` is called with the tensors written. Raises ``RunError`` naming the file for another
    architecture, an unknown pre-tokeniser or RoPE scaling, a missing or broken file, a value that ``dtype``
    cannot hold, or too little disk; ``out`` appears only when it is complete.
    """
    config = llama_config(model_dir)
    files = _tensor_files(model_dir, config)
    check_disk(out, float_bytes(config, dtype))
    partial = out.with_name(f".{out.name}.partial")
    try:
        writer = _header_writer(partial, model_dir, config, dtype)
        for done, (name, (file, source)) in enumerate(files.items()):
            tell(done, len(files))
            writer.write_tensor_data(_stored(name, _values(file, source, config), file, dtype))
        writer.close()
        tell(len(files), len(files))
        partial.replace(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)


def write_skeleton(model_dir: Path, out: Path, *, dtype: FloatType) -> bool:
    """Write the header of the file that ``export_gguf`` would write, and a hole where its values would be.

    It takes no room on a disk that knows sparse files. Without a tokenizer in the folder, which needs then
    no more than its ``config.json``, the vocabulary is left out: returns whether it is there.
    """
    config = llama_config(model_dir)
    has_tokenizer = (model_dir / "tokenizer.json").is_file()
    try:
        writer = _header_writer(out, model_dir if has_tokenizer else None, config, dtype)
        writer.close()
        shapes = tensor_shapes(config).values()
        with out.open("r+b") as file:
            header = -(-out.stat().st_size // 32) * 32
            file.truncate(header + sum(-(-tensor_bytes(shape, dtype) // 32) * 32 for shape in shapes))
    except OSError as error:
        raise disk_error(error, out) from error
    return has_tokenizer


def llama_config(folder: Path) -> dict[str, Any]:
    """Return a folder's ``config.json``; raises ``RunError`` when it describes nothing that we export."""
    path = folder / "config.json"
    config = read_json(path)
    architectures = config.get("architectures") or ["none"]
    if architectures != ["LlamaForCausalLM"]:
        raise RunError(f"{path}: only LlamaForCausalLM is exported, not {architectures[0]}")
    if config.get("quantization_config"):
        raise RunError(f"{path}: these weights are quantised already; export the model they were made from")
    for key, wanted in _FIXED.items():
        found = config.get(key, wanted)
        if found != wanted:
            what = "biases in attention or MLP are" if key.endswith("bias") else f"{key} '{found}' is"
            raise RunError(f"{path}: {what} not exported")
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [key for key in needed if not isinstance(config.get(key), int)]
    if missing:
        raise RunError(f"{path}: '{missing[0]}' is missing")
    scaling = rope_settings(config)["rope_type"]
    if scaling not in ("default", "linear", "llama3"):
        raise RunError(f"{path}: RoPE scaling '{scaling}' is not exported")
    return {"num_key_value_heads": config["num_attention_heads"], "rms_norm_eps": 1e-6, **config}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return ``{GGUF name: shape}`` of every tensor of a Llama, from its ``config.json`` alone."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * head_dim(config)
    keys = config["num_key_value_heads"] * head_dim(config)
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["output.weight"] = (config["vocab_size"], hidden)
    if rope_settings(config)["rope_type"] == "llama3":
        shapes[_ROPE_FACTORS] = (head_dim(config) // 2,)
    return shapes


def tensor_bytes(shape: tuple[int, ...], dtype: FloatType) -> int:
    """Return the bytes of a tensor in a float file: vectors are float32 in every one."""
    return math.prod(shape) * (_BYTES[dtype] if len(shape) > 1 else 4)


def float_bytes(config: Mapping[str, Any], dtype: FloatType) -> int:
    """Return the bytes of all tensors of a float file, from ``config.json`` alone."""
    return sum(tensor_bytes(shape, dtype) for shape in tensor_shapes(config).values())


def gguf_name(module: str) -> str | None:
    """Return GGUF's name of the weight of a Llama's module (``model.layers.0.mlp.up_proj``), else None."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    name = (
        f"blk.{layer[1]}.{_LAYER_NAMES[layer[2]]}"
        if layer and layer[2] in _LAYER_NAMES
        else _NAMES.get(module)
    )
    return f"{name}.weight" if name else None


def permute_rows(name: str, config: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what reorders the rows of the weight with this GGUF name: those of q and k, else nothing.

    llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves.
    """
    if name.endswith("attn_q.weight"):
        heads = int(config["num_attention_heads"])
    elif name.endswith("attn_k.weight"):
        heads = int(config["num_key_value_heads"])
    else:
        return lambda weight: weight

    def permute(weight: torch.Tensor) -> torch.Tensor:
        rows, columns = weight.shape
        return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)

    return permute


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return theta and scaling, from the form of transformers 5 or the older one."""
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    return {"rope_type": rope.get("type", "default"), **rope}


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the width of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def check_disk(out: Path, wanted: int) -> None:
    """Raise ``RunError`` when the disk of ``out`` has fewer than ``wanted`` bytes free."""
    folder = out.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error(error, out) from error
    if free < wanted:
        raise RunError(
            f"{out}: not enough disk: {wanted / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free in "
            f"{folder}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises ``RunError`` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: missing or not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: not a JSON object")
    return value


def _header_writer(out: Path, folder: Path | None, config: Mapping[str, Any], dtype: FloatType) -> Any:
    """Return a writer that has written all but the values; without ``folder`` it has no vocabulary."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(out, "llama")
    _add_hyperparameters(writer, config, dtype)
    if folder is not None:
        add_tokenizer(writer, folder, int(config["vocab_size"]))
    kind = {"f32": None, "f16": None, "bf16": gguf.GGMLQuantizationType.BF16}[dtype]
    for name, shape in tensor_shapes(config).items():
        matrix = len(shape) > 1 and dtype != "f32"
        writer.add_tensor_info(
            name,
            shape,
            np.dtype(np.float16 if matrix else np.float32),
            tensor_bytes(shape, dtype),
            raw_dtype=kind if matrix else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _add_hyperparameters(writer: Any, config: Mapping[str, Any], dtype: FloatType) -> None:
    import gguf

    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_file_type(types[dtype])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config.get("max_position_embeddings", 2048))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    rope = rope_settings(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _tensor_files(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[Path, str]]:
    """Return file and name of each tensor, in the order of the header; (folder, "") for what is computed.

    Raises ``RunError`` for tensors that are missing, unknown or of another shape than the configuration says.
    """
    from evals.backends.loading import tensor_shapes as shapes_of

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise RunError(f"{folder}: no .safetensors file in the model folder")
    wanted = tensor_shapes(config)
    found: dict[str, tuple[Path, str]] = {_ROPE_FACTORS: (folder, "")}
    for file in paths:
        for source, shape in sorted(shapes_of(file).items()):
            name = gguf_name(source.removesuffix(".weight"))
            if name == "output.weight" and config.get("tie_word_embeddings"):
                continue
            if name not in wanted or not source.endswith(".weight"):
                raise RunError(f"{file}: tensor {source} has no place in a Llama GGUF")
            if shape != wanted[name]:
                raise RunError(f"{file}: {source} is {shape}, {wanted[name]} by its config.json")
            found[name] = (file, source)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise RunError(f"{folder}: weights missing from the folder: {', '.join(missing[:3])}")
    return {name: found[name] for name in wanted}


def _values(file: Path, source: str, config: Mapping[str, Any]) -> torch.Tensor:
    import torch
    from safetensors import SafetensorError, safe_open

    if not source:
        return _llama3_factors(rope_settings(config), head_dim(config))
    try:
        with safe_open(file, framework="pt") as tensors:
            values = tensors.get_tensor(source)
    except SafetensorError as error:
        raise RunError(f"{file}: cut short or not safetensors ({error})") from error
    name = gguf_name(source.removesuffix(".weight")) or ""
    return permute_rows(name, config)(values.to(torch.float32))


def _stored(name: str, values: torch.Tensor, file: Path, dtype: FloatType) -> Any:
    """Return the array as it is written: matrices in ``dtype``, bf16 as its 16 bits."""
    import torch

    if values.ndim > 1 and dtype != "f32":
        values = values.to(torch.float16 if dtype == "f16" else torch.bfloat16)
    if not bool(torch.isfinite(values).all()):
        raise RunError(
            f"{file}: {name} holds values that {dtype} cannot; mend the model, or take bf16 or f32"
        )
    # numpy has no bf16.
    values = values.contiguous()
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def _llama3_factors(rope: Mapping[str, Any], width: int) -> torch.Tensor:
    """Return what llama.cpp divides each RoPE frequency by: Llama 3.1's scaling, shape (width / 2,)."""
    import torch

    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    places = torch.arange(0, width, 2, dtype=torch.float64) / width
    turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** -places / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    factors: torch.Tensor = (1 / ((1 - smooth) / rope["factor"] + smooth)).to(torch.float32)
    return factors
