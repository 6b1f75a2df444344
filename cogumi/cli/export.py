"""``cogumi export``: one variant of a model, outside any run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogumi.cli.common import JsonOption, WorkspaceOption, echo_json, place, say
from cogumi.errors import UsageError, nearest
from cogumi.units import duration, size

if TYPE_CHECKING:
    from cogumi.cli.progress import Line
    from cogumi.store import Artifact
    from cogumi.workspace import Workspace

_HELP = """Write one variant of a model, outside any run: GGUF, AWQ for vLLM, or plain safetensors.

ARTIFACT is an artifact's digest, a model folder, a .gguf file (made dense first), a known or a hub name, or,
for GGUF, the folder of a LoRA adapter, which becomes an adapter file for llama.cpp.

--type: for gguf any type of llama.cpp (Q4_K_M, IQ3_XXS, MXFP4, F16 …), for an adapter F16, F32 or Q8_0; for
awq W4A16 (compressed-tensors) or FOLDED (dense, AWQ's scales folded in); for safetensors BF16, F16 or F32.
With --data, rows of a training file, gguf weighs columns by an importance matrix; awq needs such rows.

Example: cogumi export smollm2-135m-instruct --format gguf --type Q4_K_M --out model.gguf --dry-run
"""

# Rows that are looked at where none are asked for: the plan's 2,000 for AWQ (3.2); an importance matrix is a
# mean over tokens and hardly moves after some ten thousands.
_SAMPLES = {"gguf": 256, "awq": 2000}
_LENGTHS = {"gguf": 512, "awq": 2048}
_TYPES = {
    "awq": ("W4A16", "FOLDED"),
    "safetensors": ("BF16", "F16", "F32"),
    "adapter": ("F16", "F32", "Q8_0"),
}


class Format(StrEnum):
    """What is written."""

    gguf = "gguf"
    awq = "awq"
    safetensors = "safetensors"


@dataclass(frozen=True, slots=True)
class _Job:
    """What one call of the command asks for."""

    ref: str
    type: str
    out: Path
    dry_run: bool
    data: str | None
    samples: int | None
    workspace: Workspace
    choices: dict[str, Any]
    """Types by tensor, and the importance matrix to read and to write."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", help=_HELP)(export)


def export(
    context: typer.Context,
    artifact: Annotated[str, typer.Argument(help="What to export.")],
    format: Annotated[Format, typer.Option("--format", "-f", help="What to write.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File (gguf) or new folder to write.")],
    type: Annotated[str | None, typer.Option("--type", "-t", help="Type of the weights.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Calibration rows: a training .jsonl, or a data set's digest."),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Calibration rows to use.")] = None,
    importance: Annotated[
        Path | None, typer.Option("--importance", help="gguf: a ready importance matrix, in GGUF.")
    ] = None,
    save_importance: Annotated[
        Path | None, typer.Option("--save-importance", help="gguf: keep the one that --data gives.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", help="gguf: PATTERN=TYPE for the tensors that it matches; repeatable."),
    ] = None,
    output_type: Annotated[str | None, typer.Option("--output-type", help="gguf: type of the head.")] = None,
    embedding_type: Annotated[
        str | None, typer.Option("--embedding-type", help="gguf: type of the embeddings.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the size and write nothing.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Export and print."""
    choices = {
        "importance": importance,
        "save_importance": save_importance,
        "tensor_types": _patterns(tensor_type or []),
        "output_type": output_type,
        "embedding_type": embedding_type,
    }
    if format != Format.gguf and any(choices.values()):
        given = next(name for name, value in choices.items() if value)
        raise UsageError(f"--{given.replace('_', '-').removesuffix('s')} goes with --format gguf only")
    if importance and data:
        raise UsageError("--importance is a ready matrix and --data gathers one; leave one of them out")
    if save_importance and not data:
        raise UsageError("--save-importance keeps what --data gathers; give --data")
    where = place(context, workspace)
    job = _Job(artifact, (type or "").upper(), out, dry_run, data, samples, where.workspace, choices)
    started = time.perf_counter()
    document = {
        "artifact": artifact,
        "format": format.value,
        "out": str(out),
        "dry_run": dry_run,
        **_export(job, format),
    }
    document["seconds"] = None if dry_run else round(time.perf_counter() - started, 2)
    if as_json:
        echo_json(document)
    else:
        _print(document)


def _export(job: _Job, format: Format) -> dict[str, Any]:
    from cogumi.subjects import ADAPTER_CONFIG

    source = _source(job)
    if not job.out.resolve().parent.is_dir():
        raise UsageError(f"--out {job.out}: its folder does not exist")
    if (source / ADAPTER_CONFIG).is_file():
        if format != Format.gguf:
            raise UsageError(f"{job.ref}: an adapter is exported as gguf; merge it for {format.value}")
        return _adapter(job, source)
    with tempfile.TemporaryDirectory(prefix=".cogumi-export-", dir=job.out.resolve().parent) as scratch:
        folder = _dense(source, Path(scratch), planning=job.dry_run)
        if format == Format.gguf:
            return _gguf(job, folder, Path(scratch))
        if job.out.exists():
            raise UsageError(f"--out {job.out}: exists already; name a new folder")
        if format == Format.awq:
            return _awq(job, folder, Path(scratch))
        return _safetensors(job, folder, Path(scratch))


def _source(job: _Job) -> Path:
    """Return the folder or GGUF file that ARTIFACT means."""
    from cogumi.subjects import model_path, stored

    found = stored(job.ref, job.workspace)
    if found is None:
        return model_path(job.ref, "hf")
    if found.kind not in ("model", "adapter"):
        raise UsageError(f"artifact {job.ref} is a {found.kind}; a model or an adapter is exported")
    return found.path


def _dense(source: Path, scratch: Path, *, planning: bool) -> Path:
    """Return the safetensors folder to export; of a GGUF file one is made, for a plan without weights."""
    from pipeline.training.pretrained import dequantise, describe

    if source.is_dir():
        return source
    if source.suffix != ".gguf":
        raise UsageError(f"{source}: a model is a folder or a .gguf file")
    say(f"    {source.name}: made dense in bf16 first; what its quantisation lost stays lost")
    dense = scratch / "dense"
    dense.mkdir()
    (describe if planning else dequantise)(source, dense)
    return dense


# GGUF ----------------------------------------------------------------------------------------------------


def _gguf(job: _Job, folder: Path, scratch: Path) -> dict[str, Any]:
    from pipeline.compression import imatrix
    from pipeline.compression.gguf_export import Recipe, make_gguf
    from pipeline.compression.gguf_sizes import fallback_note, planned_size

    if job.out.is_dir():
        raise UsageError(f"--out {job.out}: is a folder; name a file")
    recipe = Recipe(
        job.type or "Q4_K_M",
        tensor_types=job.choices["tensor_types"],
        output_type=job.choices["output_type"],
        embedding_type=job.choices["embedding_type"],
    )
    weighed = job.data is not None or job.choices["importance"] is not None
    if weighed and recipe.is_float:
        raise UsageError(f"{recipe.type} rounds nothing; leave --data and --importance out")
    planned = planned_size(folder, recipe.type, importance=weighed, **recipe.choices)
    note = fallback_note(recipe.type, planned.fallbacks)
    if note:
        say(f"    {note}")
    found = None
    if not job.dry_run:
        with _progress("export") as line:
            found = _importance(job, folder, line)
            work = scratch / "model.gguf"
            make_gguf(folder, work, recipe, scratch=scratch, importance=found, tell=_teller(line))
            if found is not None and job.choices["save_importance"] is not None:
                imatrix.save(found, job.choices["save_importance"], dataset=Path(job.data or "").name)
            work.replace(job.out)
    return {
        "type": recipe.type.upper(),
        "bytes": planned.bytes,
        "has_vocabulary": planned.has_vocabulary,
        "parameters": planned.parameters,
        "bits_per_weight": round(planned.bits_per_weight, 4),
        "needs_importance": bool(planned.needs_importance),
        "importance_tokens": found.tokens if found is not None else None,
        "fallbacks": [
            {
                "tensor": entry.tensor,
                "wanted": entry.wanted,
                "kind": entry.kind,
                "extra_bytes": entry.extra_bytes,
            }
            for entry in planned.fallbacks
        ],
    }


def _importance(job: _Job, folder: Path, line: Line) -> Any:
    from pipeline.compression import imatrix

    if job.choices["importance"] is not None:
        return imatrix.load(job.choices["importance"])
    if job.data is None:
        return None
    rows = _rows(job, folder, "gguf")
    line.update(0, len(rows), unit="calibration rows")
    return imatrix.gather_from(folder, rows)


def _adapter(job: _Job, folder: Path) -> dict[str, Any]:
    from cogumi.subjects import resolve
    from pipeline.compression.gguf_adapter import export_adapter
    from pipeline.compression.gguf_write import llama_config

    kind = _known(job.type or "F16", "adapter")
    if job.data or any(job.choices.values()):
        raise UsageError("an adapter takes --type and --out alone")
    if job.dry_run:
        raise UsageError(f"{folder}: --dry-run tells the size of models, not of adapters")
    base = resolve(str(folder), job.workspace, "hf").base
    if base is None or not base.is_dir():
        raise UsageError(f"{folder}: its base {base} is no model folder, whose config.json is needed")
    made = export_adapter(folder, llama_config(base), job.out, dtype=kind.lower())  # type: ignore[arg-type]
    return {
        "type": kind,
        "bytes": made.bytes,
        "parameters": made.parameters,
        "rank": made.rank,
        "layers": made.layers,
    }


# Other formats -------------------------------------------------------------------------------------------


def _awq(job: _Job, folder: Path, scratch: Path) -> dict[str, Any]:
    from pipeline.compression.awq import AWQSettings, awq_folder

    kind = _known(job.type or "W4A16", "awq")
    if job.dry_run:
        raise UsageError("--dry-run tells the size of gguf and safetensors; awq's is known when it is made")
    if job.data is None:
        raise UsageError("awq needs calibration rows: --data FILE.jsonl")
    rows = _rows(job, folder, "awq")
    work = scratch / "awq"
    work.mkdir()
    with _progress("awq") as line:
        settings = AWQSettings(samples=len(rows), folded=kind == "FOLDED")
        made = awq_folder(folder, rows, work, settings, tell=lambda done, total: line.update(done, total))
    work.replace(job.out)
    return {
        "type": kind,
        "bytes": made.bytes,
        "parameters": made.parameters,
        "group_size": made.group_size,
        "rows": len(rows),
    }


def _safetensors(job: _Job, folder: Path, scratch: Path) -> dict[str, Any]:
    from math import prod

    from evals.backends.loading import tensor_shapes as shapes_of
    from pipeline.compression.gguf_write import llama_config, tensor_shapes
    from pipeline.compression.safetensors_export import export_safetensors

    kind = _known(job.type or "BF16", "safetensors")
    files = sorted(folder.glob("*.safetensors"))
    # Of a GGUF file there are no weights while only its size is asked for.
    shapes = [shapes_of(file) for file in files] or [tensor_shapes(llama_config(folder))]
    parameters = sum(prod(shape) for each in shapes for shape in each.values())
    planned = parameters * (4 if kind == "F32" else 2)
    if not job.dry_run:
        work = scratch / "safetensors"
        work.mkdir()
        with _progress("export") as line:
            export_safetensors(
                folder,
                work,
                kind.lower(),  # type: ignore[arg-type]
                tell=lambda done, total: line.update(done, total, unit="files"),
            )
        planned = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        work.replace(job.out)
    return {"type": kind, "bytes": planned, "parameters": parameters}


# What they share -----------------------------------------------------------------------------------------


def _rows(job: _Job, folder: Path, format: str) -> list[list[int]]:
    """Return calibration rows; without --samples as many as there are, up to the usual number."""
    from pipeline.compression.calibration_rows import HELD_OUT_SHARE, calibration_rows
    from pipeline.training.data import is_held_out, read_examples, training_file

    data = _dataset(job)
    samples = job.samples
    if samples is None:
        examples = read_examples(training_file(data))
        usable = sum(not is_held_out(example.question_id, HELD_OUT_SHARE) for example in examples)
        samples = max(1, min(usable, _SAMPLES[format]))
    return calibration_rows(data, folder, samples=samples, max_length=_LENGTHS[format], seed=0)


def _dataset(job: _Job) -> Artifact:
    from cogumi.store import Artifact
    from cogumi.subjects import stored

    path = Path(job.data or "")
    found = None if path.exists() else stored(str(job.data), job.workspace)
    if found is not None:
        return found
    if not path.is_file() or path.suffix != ".jsonl":
        raise UsageError(f"--data {path}: no such .jsonl file, nor a data set's digest")
    # As the store would describe it: the stages know data sets in no other form.
    manifest = {"kind": "dataset", "facts": {}, "files": {path.name: {"bytes": path.stat().st_size}}}
    return Artifact("sha256:" + "0" * 64, path.parent, manifest)


def _known(type: str, format: str) -> str:
    if type not in _TYPES[format]:
        raise UsageError(f"unknown {format} type '{type}'{nearest(type, list(_TYPES[format]))}")
    return type


def _patterns(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        pattern, _, kind = text.rpartition("=")
        if not pattern or not kind:
            raise UsageError(f"--tensor-type {text}: give PATTERN=TYPE, for example ffn_down=q6_K")
        found[pattern] = kind
    return found


@contextmanager
def _progress(label: str) -> Iterator[Line]:
    from cogumi.cli.progress import Line

    line = Line(label)
    try:
        yield line
    finally:
        line.close()


def _teller(line: Line) -> Any:
    return lambda what, done, total: line.update(done, total, unit=f"tensors {what}")


def _print(document: dict[str, Any]) -> None:
    bits = document.get("bits_per_weight")
    facts = [size(document["bytes"]), f"{document['parameters']:,} parameters"]
    if bits is not None:
        facts.append(f"{bits:.2f} bits each")
    if document.get("importance_tokens"):
        facts.append(f"importance matrix of {document['importance_tokens']:,} tokens")
    if document.get("has_vocabulary") is False:
        facts.append("without the vocabulary, which is not there")
    if document["dry_run"]:
        needs = "; needs an importance matrix (--data)" if document.get("needs_importance") else ""
        typer.echo(f"{document['type']} would take {', '.join(facts)}{needs}; nothing was written")
    else:
        typer.echo(
            f"{document['out']}: {document['type']}, {', '.join(facts)}, in {duration(document['seconds'])}"
        )
