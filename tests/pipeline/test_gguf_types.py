"""GGUF types: what a file will take before it is made, what fell back, and the importance matrix."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_stages import artifact, micro_data, run_stage
from tiny_llama import tiny_llama

from cogumi.errors import RunError, UsageError
from evals.backends.gguf import GGUFBackend
from evals.backends.gguf_header import kind_number, read_header, stored_bytes
from evals.backends.loading import load_model
from pipeline.compression import gguf_write, imatrix
from pipeline.compression.activations import column_moments
from pipeline.compression.gguf_export import GGUF, GGUFSettings, Recipe, export_gguf, make_gguf
from pipeline.compression.gguf_quantize import known_types, quantize_gguf
from pipeline.compression.gguf_sizes import fallback_note, planned_size
from pipeline.compression.imatrix import Importance

ROWS = [list(range(5, 5 + length)) for length in (3, 40, 17, 80, 2)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, which fit every type; an untied head."""
    return tiny_llama(
        tmp_path_factory.mktemp("wide") / "model",
        hidden_size=256,
        intermediate_size=512,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 and 96, and tied embeddings: no K-quant fits."""
    return tiny_llama(tmp_path_factory.mktemp("narrow") / "model")


@pytest.fixture(scope="module")
def float_file(wide: Path) -> Path:
    out = wide.parent / "wide.gguf"
    export_gguf(wide, out, dtype="f16")
    return out


@pytest.fixture(scope="module")
def importance(wide: Path) -> Importance:
    return imatrix.gather_from(wide, ROWS)


def test_moments_are_those_of_each_row_alone(wide: Path) -> None:
    import torch

    model = load_model(wide, dtype="fp32").model
    wanted: dict[str, torch.Tensor] = {}

    def add(name: str, hidden: torch.Tensor) -> None:
        wanted[name] = wanted.get(name, 0) + hidden.double().square().sum(dim=(0, 1))

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.inference_mode():
        for row in ROWS:
            model(input_ids=torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    found = column_moments(model, ROWS, device=torch.device("cpu"))
    assert found.keys() == wanted.keys()
    assert {"model.layers.1.mlp.down_proj", "lm_head"} <= found.keys()
    for name, moments in found.items():
        assert moments.tokens == sum(map(len, ROWS))
        np.testing.assert_allclose(moments.sum_squares, wanted[name].numpy(), rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_moments_of_nothing_or_of_a_broken_model_are_refused(wide: Path) -> None:
    import torch

    model = load_model(wide, dtype="fp32").model
    with pytest.raises(RunError, match="calibration data too short: no rows"):
        column_moments(model, [[]], device=torch.device("cpu"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(RunError, match=r"inputs of model.layers.1.mlp.down_proj are not finite"):
        column_moments(model, ROWS, device=torch.device("cpu"))


def test_importance_matrix_is_llama_cpps_own_file(importance: Importance, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "imatrix.gguf"
    imatrix.save(importance, path, dataset="rows", chunk=64)
    reader = gguf.GGUFReader(path)
    fields = {
        name: reader.fields[name].contents() for name in reader.fields if name.startswith(("general", "im"))
    }
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["rows"]
    # 142 tokens in chunks of 64.
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (3, 64)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors["blk.0.ffn_down.weight.in_sum2"].shape) == [512, 1]
    assert list(tensors["blk.0.ffn_down.weight.counts"].shape) == [1, 1]
    assert tensors["output.weight.counts"].data.item() == importance.tokens == 142
    again = imatrix.load(path)
    assert again.moments.keys() == importance.moments.keys()
    assert len(again.moments) == 2 * 7 + 1
    for name, moments in again.moments.items():
        np.testing.assert_array_equal(moments.sum_squares, importance.moments[name].sum_squares)
        assert moments.tokens == 142


def test_tied_embeddings_are_weighed_as_the_head(narrow: Path) -> None:
    found = imatrix.gather_from(narrow, ROWS)
    assert "output.weight" not in found.moments
    columns = found.columns("token_embd.weight")
    assert columns is not None
    assert columns.shape == (64,)
    # The head reads what a norm with gains of one has left: columns whose squares have a mean of one.
    assert columns.mean() == pytest.approx(1, rel=1e-3)


def test_another_file_is_no_importance_matrix(
    float_file: Path, importance: Importance, narrow: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"wide.gguf: a GGUF file, but no importance matrix"):
        imatrix.load(float_file)
    export_gguf(narrow, tmp_path / "narrow.gguf", dtype="f16")
    with pytest.raises(RunError, match=r"of another model: .* has 256 columns there, rows of 64 here"):
        quantize_gguf(tmp_path / "narrow.gguf", tmp_path / "out.gguf", "Q4_0", importance=importance)
    assert [path.name for path in tmp_path.iterdir()] == ["narrow.gguf"]


# What is known of the others is known of these; the grids of I-quants take llama.cpp seconds to set up.
QUICK = {"Q8_0", "Q4_K_M", "Q2_K_S", "IQ4_XS", "MXFP4", "NVFP4", "Q2_0", "Q1_0"}


@pytest.mark.parametrize(
    "type",
    [
        type if type in QUICK else pytest.param(type, marks=pytest.mark.slow)
        for type in sorted(known_types().keys() - {"F16", "BF16"})
    ],
)
def test_every_type_takes_what_was_planned(
    float_file: Path, importance: Importance, tmp_path: Path, type: str
) -> None:
    out = tmp_path / "out.gguf"
    planned = planned_size(float_file, type, importance=True)
    quantize_gguf(float_file, out, type, importance=importance)
    assert out.stat().st_size == planned.bytes
    assert {tensor.name: tensor.kind for tensor in read_header(out).tensors} == planned.kinds
    assert planned.fallbacks == ()
    stem = "q8" if type == "MXFP4_MOE" else type.lower().partition("_")[0]
    layers = [kind for name, kind in planned.kinds.items() if name.startswith("blk") and kind != "f32"]
    assert sum(kind.startswith(stem) for kind in layers) >= len(layers) / 3
    assert list(tmp_path.iterdir()) == [out]


def test_an_importance_matrix_is_used(
    wide: Path, float_file: Path, importance: Importance, tmp_path: Path
) -> None:
    """At the same bytes the weighed error of the layers' outputs is smaller with it."""
    import gguf

    weight = load_model(wide, dtype="fp32").model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    columns = importance.columns("blk.1.ffn_down.weight")
    errors = {}
    for name, given in (("plain", None), ("weighed", importance)):
        quantize_gguf(float_file, tmp_path / f"{name}.gguf", "Q4_K_S", importance=given)
        reader = gguf.GGUFReader(tmp_path / f"{name}.gguf")
        tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        errors[name] = float((np.square(values - weight) * columns).sum())
    assert errors["weighed"] < 0.95 * errors["plain"]


@pytest.mark.parametrize(
    ("type", "tensor"),
    [("IQ2_XXS", "iq2_xxs"), ("IQ1_S", "iq1_s"), ("Q2_K_S", "q2_K")],
)
def test_a_type_that_needs_importance_says_so_before_work(
    float_file: Path, wide: Path, tmp_path: Path, type: str, tensor: str
) -> None:
    assert planned_size(wide, type).needs_importance
    with pytest.raises(
        RunError, match=rf"^{type} needs an importance matrix \(for blk.0.attn_\w+.weight, {tensor}"
    ):
        quantize_gguf(float_file, tmp_path / "out.gguf", type)
    assert list(tmp_path.iterdir()) == []


def test_types_by_tensor(float_file: Path, tmp_path: Path) -> None:
    quantize_gguf(
        float_file,
        tmp_path / "out.gguf",
        "Q4_0",
        tensor_types={r"blk\.0\.ffn_down": "q2_0", "ffn_down": "Q6_K"},
        output_type="iq4_nl",
        embedding_type="q5_1",
    )
    kinds = {tensor.name: tensor.kind for tensor in read_header(tmp_path / "out.gguf").tensors}
    wanted = {
        "blk.0.ffn_down.weight": "q2_0",
        "blk.1.ffn_down.weight": "q6_K",
        "blk.1.ffn_up.weight": "q4_0",
        "output.weight": "iq4_nl",
        "token_embd.weight": "q5_1",
    }
    assert {name: kinds[name] for name in wanted} == wanted
    backend = GGUFBackend(tmp_path / "out.gguf")
    assert np.isfinite(backend.logits([5, 6, 7])).all()
    backend.close()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"tensor_types": {"ffn_dwn": "q6_K"}}, "pattern 'ffn_dwn' matches no tensor"),
        ({"tensor_types": {"(ffn": "q6_K"}}, "pattern '\\(ffn': no regular expression"),
        ({"tensor_types": {"ffn": "q6_X"}}, "'q6_X' is no tensor type"),
        ({"output_type": "Q4_K_M"}, "'Q4_K_M' is no tensor type"),
    ],
)
def test_unknown_types_and_patterns_are_wrong_usage(
    float_file: Path, tmp_path: Path, given: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(UsageError, match=wanted):
        quantize_gguf(float_file, tmp_path / "out.gguf", "Q4_0", **given)


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ2_XS", "Q2_0", "F16", "BF16", "F32"])
def test_a_plan_of_a_folder_needs_no_weights(narrow: Path, tmp_path: Path, type: str) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(narrow / name, tmp_path / name)
    planned = planned_size(tmp_path, type, importance=type == "IQ2_XS")
    weights = imatrix.gather_from(narrow, ROWS) if type == "IQ2_XS" else None
    out = tmp_path / "out.gguf"
    assert make_gguf(narrow, out, Recipe(type), scratch=tmp_path, importance=weights) == planned
    assert out.stat().st_size == planned.bytes
    # From the configuration alone: all but the vocabulary.
    for path in tmp_path.iterdir():
        if path.name != "config.json":
            path.unlink()
    bare = planned_size(tmp_path, type, importance=type == "IQ2_XS")
    assert (bare.kinds, bare.parameters, bare.has_vocabulary) == (planned.kinds, planned.parameters, False)
    assert 0 < planned.bytes - bare.bytes < 20_000


def test_what_fell_back_is_told_with_its_cost(narrow: Path, tmp_path: Path) -> None:
    planned = planned_size(narrow, "Q4_K_M")
    found = {entry.tensor: entry for entry in planned.fallbacks}
    assert len(found) == 2 * 7 + 1
    query = found["blk.0.attn_q.weight"]
    # 64 x 64 weights: Q5_0 has 5.5 bits where Q4_K would have 4.5.
    assert (query.wanted, query.kind, query.extra_bytes) == ("q4_K", "q5_0", 64 * 64 // 8)
    assert (found["token_embd.weight"].wanted, found["token_embd.weight"].kind) == ("q6_K", "q8_0")
    note = fallback_note("q4_k_m", planned.fallbacks)
    assert note.startswith("Q4_K_M: 15 tensors fell back")
    assert "of q4_K as q5_0" in note
    assert fallback_note("q8_0", planned_size(narrow, "Q8_0").fallbacks) == ""
    facts = run_stage(GGUF, GGUFSettings(), tmp_path / "stage", {"model": artifact(narrow, "model")})[0].facts
    assert facts["fallback_note"] == note
    assert facts["fallback_extra_bytes"] == sum(entry.extra_bytes for entry in planned.fallbacks) > 0


def test_odd_widths_stay_float_and_say_so(tmp_path: Path) -> None:
    """Widths that no block of 32 divides: llama.cpp leaves such tensors in F16."""
    folder = tiny_llama(tmp_path / "model", hidden_size=40, intermediate_size=56, tie_word_embeddings=False)
    planned = make_gguf(folder, tmp_path / "out.gguf", Recipe("Q4_0"), scratch=tmp_path)
    assert {entry.kind for entry in planned.fallbacks} == {"f16"}
    assert len(planned.fallbacks) == 2 * 7 + 2
    backend, model = GGUFBackend(tmp_path / "out.gguf"), load_model(folder, dtype="fp32").model
    import torch

    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ROWS[1]])).logits[0, -1].numpy()
    assert np.abs(backend.logits(ROWS[1]) - wanted).max() < 1e-2 * np.abs(wanted).max()
    backend.close()


def test_stage_gathers_importance_from_its_data_and_resumes(narrow: Path, tmp_path: Path) -> None:
    model, data = artifact(narrow, "model"), micro_data(tmp_path / "data", per_cell=2)
    settings = GGUFSettings(type="IQ2_XS", importance=True, samples=4, max_length=48)
    result, made = run_stage(GGUF, settings, tmp_path / "one", {"model": model, "data": data})
    assert result.facts["importance"]["rows"] == 4
    assert 4 < result.facts["importance"]["tokens"] <= 4 * 48
    assert result.facts["bytes_resident"] == result.facts["bytes_download"] == made.bytes
    # A second process finds the matrix of the first and needs no rows any more.
    kept = tmp_path / "one" / "scratch" / "importance.gguf"
    (tmp_path / "two" / "scratch").mkdir(parents=True)
    shutil.copy(kept, tmp_path / "two" / "scratch")
    (data.path / "training_complete.jsonl").write_text("")
    assert (
        run_stage(GGUF, settings, tmp_path / "two", {"model": model, "data": data})[1].digest == made.digest
    )
    with pytest.raises(UsageError, match="'importance' needs the input 'data'"):
        run_stage(GGUF, settings, tmp_path / "three", {"model": model})


def test_too_little_disk_is_told_before_work(
    wide: Path, float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_write.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100_000))
    for work in (
        lambda: export_gguf(wide, tmp_path / "out.gguf", dtype="f16"),
        lambda: quantize_gguf(float_file, tmp_path / "out.gguf", "Q4_0"),
    ):
        with pytest.raises(
            RunError, match=r"out.gguf: not enough disk: [\d.]+ MB are needed and 0.1 MB are free"
        ):
            work()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(float_file: Path) -> None:
    """The device that is always full: llama.cpp itself fails in the middle of its work."""
    with pytest.raises(RunError, match=r"disk full|cannot write|cannot be quantised"):
        _quantise_into(float_file, Path("/dev/full"))


def _quantise_into(src: Path, out: Path) -> None:
    from pipeline.compression.gguf_quantize import Parameters, run_quantize

    run_quantize(src, out, Parameters("Q4_0", None, None, None))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda data: data[:-1000], r"cut short \([\d,]+ bytes of [\d,]+\)"),
        (lambda data: data[:200], "cut short or not a GGUF file"),
        (lambda data: b"GGUF" + struct.pack("<I", 1) + data[8:], "GGUF version 1; versions 2 and 3"),
        (lambda data: b"GGUF" + struct.pack("<I", 9) + data[8:], "GGUF version 9; versions 2 and 3"),
        (lambda data: b"lmgg" + data[4:], "not a GGUF file"),
        (lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], "cut short or not a GGUF file"),
    ],
)
def test_a_broken_gguf_file_is_one_line(float_file: Path, tmp_path: Path, change: Any, wanted: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(change(float_file.read_bytes()))
    for work in (
        lambda: planned_size(broken, "Q4_0"),
        lambda: quantize_gguf(broken, tmp_path / "o.gguf", "Q4_0"),
    ):
        with pytest.raises(RunError, match=rf"broken.gguf: {wanted}") as error:
            work()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [broken]


def test_a_quantised_source_is_refused(float_file: Path, tmp_path: Path) -> None:
    quantize_gguf(float_file, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(RunError, match=r"q8.gguf: .* is q8_0 already; quantise from a file in F16"):
        quantize_gguf(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_tokenizer_files_are_named(narrow: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(narrow, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: missing; copy it from the model"):
        export_gguf(tmp_path / "model", tmp_path / "out.gguf", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_values_beyond_half_precision_are_refused(narrow: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(narrow, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"blk.1.ffn_up.weight holds values that f16 cannot"):
        export_gguf(tmp_path / "model", tmp_path / "out.gguf", dtype="f16")
    export_gguf(tmp_path / "model", tmp_path / "out.gguf", dtype="bf16")


def test_a_vocabulary_larger_than_the_model_is_refused(narrow: Path, tmp_path: Path) -> None:
    shutil.copytree(narrow, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"].append({**described["added_tokens"][0], "id": 400, "content": "<|more|>"})
    path.write_text(json.dumps(described))
    with pytest.raises(RunError, match=r"tokenizer.json: 401 tokens for a model of \d+"):
        export_gguf(tmp_path / "model", tmp_path / "out.gguf", dtype="f16")


def test_types_are_found_in_any_case_and_sized_as_ggml_does() -> None:
    assert kind_number("Q4_k") == kind_number("q4_K") == 12
    # Seen in files of llama.cpp: 2.25 bits in blocks of 64, 4.25 in blocks of 32.
    assert stored_bytes("q2_0", (2, 576)) * 8 == 2 * 576 * 2.25
    assert stored_bytes("mxfp4", (2, 576)) * 8 == 2 * 576 * 4.25
    with pytest.raises(RunError, match="rows of 576 cannot be stored as q4_K, whose blocks have 256"):
        stored_bytes("q4_K", (2, 576))
