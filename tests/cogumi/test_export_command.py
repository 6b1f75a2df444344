"""``cogumi export`` as a user meets it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.backends.gguf_header import read_header

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipeline"))
from micro_stages import artifact, micro_data
from tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("export") / "model", hidden_size=256, intermediate_size=256)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_data(tmp_path_factory.mktemp("rows") / "data", per_cell=2).file("training_complete.jsonl")


def test_dry_run_tells_the_size_that_the_file_then_has(cogumi: Any, folder: Path, tmp_path: Path) -> None:
    command = ("export", str(folder), "--format", "gguf", "--type", "q4_k_m", "--out", "m.gguf", "--json")
    planned = cogumi(*command, "--dry-run").json
    assert list(tmp_path.iterdir()) == []
    made = cogumi(*command)
    assert (made.code, made.json["bytes"]) == (0, planned["bytes"])
    assert (tmp_path / "m.gguf").stat().st_size == planned["bytes"]
    assert (planned["dry_run"], planned["seconds"], planned["type"]) == (True, None, "Q4_K_M")
    assert (made.json["dry_run"], made.json["fallbacks"]) == (False, [])
    assert made.json["seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_importance_matrix_is_gathered_kept_and_used_again(
    cogumi: Any, folder: Path, rows: Path, tmp_path: Path
) -> None:
    command = ("export", str(folder), "-f", "gguf", "-t", "Q2_K_S")
    refused = cogumi(*command, "-o", "none.gguf")
    assert refused.code == 5
    assert refused.err.startswith("cogumi: Q2_K_S needs an importance matrix (for blk.0.")
    told = cogumi(*command, "-o", "none.gguf", "--dry-run")
    assert "needs an importance matrix (--data); nothing was written" in told.out
    first = cogumi(
        *command, "-o", "a.gguf", "--data", str(rows), "--samples", "5", "--save-importance", "i.gguf"
    )
    assert first.code == 0, first.err
    assert "importance matrix of" in first.out
    again = cogumi(*command, "-o", "b.gguf", "--importance", "i.gguf", "--json")
    assert again.json["importance_tokens"] > 5
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "i.gguf"]


def test_types_by_tensor_and_fallbacks_are_told(cogumi: Any, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "narrow")
    done = cogumi(
        "export", "narrow", "-f", "gguf", "-t", "Q4_K_M", "-o", "m.gguf",
        "--tensor-type", "ffn_down=iq4_nl", "--embedding-type", "q5_0",
    )  # fmt: skip
    assert done.code == 0
    assert "tensors fell back, the rows being no whole blocks" in done.err
    kinds = {tensor.name: tensor.kind for tensor in read_header(tmp_path / "m.gguf").tensors}
    assert (kinds["blk.1.ffn_down.weight"], kinds["token_embd.weight"]) == ("iq4_nl", "q5_0")


def test_adapter_becomes_an_adapter_file(cogumi: Any, folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from evals.backends.loading import load_model

    model = get_peft_model(load_model(folder).model, LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "lora")
    done = cogumi("export", "lora", "-f", "gguf", "-o", "adapter.gguf", "--json")
    assert (done.code, done.json["rank"], done.json["layers"]) == (0, 2, 2)
    assert read_header(tmp_path / "adapter.gguf").metadata["general.type"] == "adapter"
    assert cogumi("export", "lora", "-f", "safetensors", "-o", "x").code == 2


def test_safetensors_and_stored_models(cogumi: Any, folder: Path, tmp_path: Path) -> None:
    from cogumi.workspace import Workspace

    workspace = Workspace(tmp_path / "workspace")
    workspace.create()
    staging = workspace.store.new_staging()
    shutil.copytree(folder, staging / "payload", dirs_exist_ok=True)
    made_by = {"stage": "test", "version": 1, "settings": {}, "inputs": {}}
    kept = workspace.store.commit(staging, kind="model", made_by=made_by, facts={}, created="now")
    done = cogumi(
        "export", kept.short, "-f", "safetensors", "-t", "f16", "-o", "half",
        "--workspace", str(workspace.root),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    whole, half = (artifact(path, "model") for path in (folder, tmp_path / "half"))
    assert half.bytes < 0.55 * whole.bytes
    again = cogumi("export", str(folder), "-f", "safetensors", "-o", "half")
    assert (again.code, "exists already; name a new folder" in again.err) == (2, True)


@pytest.mark.slow
def test_awq_is_written_for_vllm(cogumi: Any, folder: Path, rows: Path, tmp_path: Path) -> None:
    done = cogumi(
        "export", str(folder), "-f", "awq", "-o", "awq", "--data", str(rows), "--samples", "8", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["group_size"] == 128
    config = json.loads((tmp_path / "awq" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (("none", "-f", "gguf", "-o", "x"), 2, "no artifact, folder or model 'none'"),
        (("MODEL", "-f", "gguf", "-o", "x", "-t", "Q4_K_X"), 2, "unknown GGUF type 'Q4_K_X'"),
        (("MODEL", "-f", "gguf", "-o", "no/x"), 2, "its folder does not exist"),
        (("MODEL", "-f", "gguf", "-o", "."), 2, "is a folder; name a file"),
        (("MODEL", "-f", "gguf", "-o", "x", "--tensor-type", "ffn"), 2, "give PATTERN=TYPE"),
        (("MODEL", "-f", "gguf", "-o", "x", "--data", "no.jsonl"), 2, "no such .jsonl file"),
        (("MODEL", "-f", "gguf", "-o", "x", "-t", "F16", "--data", "ROWS"), 2, "rounds nothing"),
        (("MODEL", "-f", "gguf", "-o", "x", "--data", "ROWS", "--samples", "9999"), 5, "data too short"),
        (("MODEL", "-f", "gguf", "-o", "x", "--save-importance", "i"), 2, "give --data"),
        (("MODEL", "-f", "awq", "-o", "x"), 2, "awq needs calibration rows"),
        (("MODEL", "-f", "awq", "-o", "x", "-t", "W3"), 2, "unknown awq type 'W3'"),
        (
            ("MODEL", "-f", "safetensors", "-o", "x", "--output-type", "q6_K"),
            2,
            "goes with --format gguf only",
        ),
        (("GPT2", "-f", "gguf", "-o", "x"), 5, "only LlamaForCausalLM is exported, not GPT2LMHeadModel"),
        (("BARE", "-f", "gguf", "-o", "x"), 5, "tokenizer_config.json: missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    cogumi: Any, folder: Path, rows: Path, tmp_path: Path, arguments: Any, code: int, wanted: str
) -> None:
    shutil.copytree(folder, tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "gpt2" / "config.json").write_text(
        json.dumps(config | {"architectures": ["GPT2LMHeadModel"]})
    )
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer_config.json").unlink()
    names = {"MODEL": str(folder), "ROWS": str(rows), "GPT2": "gpt2", "BARE": "bare"}
    done = cogumi("export", *[names.get(word, word) for word in arguments])
    assert (done.code, done.out) == (code, "")
    assert wanted in done.err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".cogumi") == ["bare", "gpt2"]
