"""A model folder whose weights are the values that a GGUF file holds: what is shipped, read by transformers.

Covered: Llama files of every ggml type, q2_0 among them, that ``export_gguf`` or llama.cpp made of a folder.
llama.cpp rounds activations to 8 bits in its products with quantised weights; transformers does not, so
logits agree to about a hundredth of their range and not exactly. Not covered: GGUF adapters.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogumi.errors import RunError
from cogumi.store import disk_error
from cogumi.subjects import read_json_object
from pipeline.compression.gguf_tensors import GGUFFile

if TYPE_CHECKING:
    import torch

    from pipeline.compression.ggml import Floats

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_SHARD = 4_000_000_000
"""Bytes of one safetensors file: what is in memory at a time."""


def dense_from_gguf(gguf: Path, like: Path, out: Path, *, dtype: str = "float32") -> None:
    """Write a model folder with the weights of ``gguf``; configuration and tokenizer come from ``like``.

    ``dtype`` is torch's name; in float32 the values are exactly the file's, in bfloat16 they are rounded to 8
    bits of mantissa. Raises ``RunError`` when the file is broken, or not of a model shaped as ``like``;
    ``out`` appears only when it is complete.
    """
    import torch

    source = GGUFFile(gguf)
    config = read_json_object(like / "config.json")
    places = _places(config, like)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in sorted(like.iterdir()):
            if file.is_file() and file.suffix not in _WEIGHTS and not file.name.endswith(".index.json"):
                shutil.copy2(file, partial / file.name)
        _write_config(partial / "config.json", config, dtype)
        _write_weights(source, places, config, partial, getattr(torch, dtype))
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hf_name(name: str) -> str | None:
    """Return the module of transformers' Llama that a GGUF tensor is the weight of; None for other tensors.

    ``blk.0.attn_q.weight`` gives ``model.layers.0.self_attn.q_proj``.
    """
    fixed = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    inside = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    parts = name.removesuffix(".weight").split(".")
    if len(parts) == 1:
        return fixed.get(parts[0])
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in inside:
        return f"model.layers.{parts[1]}.{inside[parts[2]]}"
    return None


def gguf_name(module: str) -> str | None:
    """Return the GGUF tensor that holds a module's weight: the inverse of ``hf_name``."""
    parts = module.split(".")
    layer = f"blk.{parts[2]}." if module.startswith("model.layers.") else ""
    names = (
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "attn_norm",
        "ffn_norm",
    )
    for name in names if layer else ("token_embd", "output", "output_norm"):
        if hf_name(f"{layer}{name}.weight") == module:
            return f"{layer}{name}.weight"
    return None


def row_order(module: str, config: dict[str, Any]) -> tuple[int, int] | None:
    """Return (heads, rows of a head) where llama.cpp orders a module's rows otherwise: q and k; else None.

    llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves.
    """
    heads = {
        "q_proj": config.get("num_attention_heads"),
        "k_proj": config.get("num_key_value_heads") or config.get("num_attention_heads"),
    }.get(module.rpartition(".")[2])
    if heads is None:
        return None
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(heads), int(size)


def to_gguf_rows(values: torch.Tensor, order: tuple[int, int] | None) -> torch.Tensor:
    """Reorder rows (dimension 0) from transformers' order to llama.cpp's."""
    if order is None:
        return values
    heads, size = order
    return values.reshape(heads, 2, size // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def to_hf_rows(values: torch.Tensor, order: tuple[int, int] | None) -> torch.Tensor:
    """Reorder rows (dimension 0) from llama.cpp's order to transformers'."""
    if order is None:
        return values
    heads, size = order
    return values.reshape(heads, size // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _places(config: dict[str, Any], like: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of the model, without memory for the weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from evals.backends.loading import quiet_transformers

    if config.get("architectures") != ["LlamaForCausalLM"]:
        raise RunError(f"{like / 'config.json'}: only LlamaForCausalLM is read back from GGUF")
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(like, local_files_only=True))
    return {name: tuple(values.shape) for name, values in model.named_parameters()}


def _write_config(path: Path, config: dict[str, Any], dtype: str) -> None:
    import json

    left_out = ("quantization_config", "torch_dtype")
    kept = {key: value for key, value in config.items() if key not in left_out}
    path.write_text(json.dumps({**kept, "dtype": dtype}, indent=2) + "\n")


def _write_weights(
    source: GGUFFile, places: dict[str, tuple[int, ...]], config: dict[str, Any], out: Path, dtype: Any
) -> None:
    import json

    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    size = number = 0

    def flush() -> None:
        nonlocal shard, size, number
        number += 1
        name = f"model-{number:05}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for name, shape in places.items():
        values = _tensor(source, name, shape, config).to(dtype).contiguous()
        shard[name] = values
        size += values.nbytes
        if size >= _SHARD:
            flush()
    if shard:
        flush()
    if number == 1:
        (out / "model-00001.safetensors").rename(out / "model.safetensors")
    else:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=2, sort_keys=True)
        (out / "model.safetensors.index.json").write_text(text + "\n")


def _tensor(source: GGUFFile, name: str, shape: tuple[int, ...], config: dict[str, Any]) -> torch.Tensor:
    import torch

    module = name.removesuffix(".weight")
    found = gguf_name(module)
    # A file whose head is tied holds the embedding alone, also for a model that has both.
    if found == "output.weight" and found not in source.tensors:
        found = "token_embd.weight"
    if found is None or found not in source.tensors:
        raise RunError(f"{source.path}: has no tensor for {name}; it is not a GGUF of this model")
    values: Floats = source.values(found)
    if values.shape != shape:
        raise RunError(f"{source.path}: {found} is {values.shape}, the model's {name} is {shape}")
    return to_hf_rows(torch.from_numpy(values.copy()), row_order(module, config))
