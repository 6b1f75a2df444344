from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from checkpoints import masked, save
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_stages import artifact, micro_data, run_stage

from cogumi.digest import file_sha256, tree_files
from cogumi.errors import CogumiError, RunError, UsageError
from cogumi.store import Artifact
from pipeline.compression.dictionary import train_dictionary, type_gains
from pipeline.compression.expand import expand
from pipeline.compression.gguf_export import GGUF, GGUFSettings
from pipeline.compression.package import PACKAGE, PackageSettings, compress
from pipeline.compression.package_format import MANIFEST, is_inside, read_manifest
from pipeline.compression.tensor_file import encoded
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings

FAST = PackageSettings(level=3, dictionary_bytes=0)


@dataclass(frozen=True)
class Made:
    model: Artifact
    gguf: Artifact
    packaged: Artifact
    """The GGUF file, packaged."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("package")
    data = micro_data(folder / "data", per_cell=4)
    shape = MicroModelSettings(
        hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64, vocab_size=400
    )
    model = run_stage(MICRO_MODEL, shape, folder / "model", {"data": data})[1]
    gguf = run_stage(GGUF, GGUFSettings(type="Q8_0"), folder / "gguf", {"model": model})[1]
    packaged = run_stage(PACKAGE, FAST, folder / "packaged", {"model": gguf})[1]
    return Made(model, gguf, packaged)


@pytest.fixture
def package(made: Made, tmp_path: Path) -> Path:
    """A package that a test may spoil."""
    return Path(shutil.copytree(made.packaged.path / "download", tmp_path / "download"))


# The stage ------------------------------------------------------------------------------------------


def test_a_packaged_gguf_expands_to_the_same_bytes(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "expanded"
    told: list[tuple[int, int]] = []
    files = expand(made.packaged.path, out, told=lambda done, total: told.append((done, total)))
    assert files == [out / "model.gguf"]
    assert (out / "model.gguf").read_bytes() == (made.gguf.path / "model.gguf").read_bytes()
    assert told[-1][0] == told[-1][1] == (out / "model.gguf").stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expanded"]


def test_the_two_sizes_are_those_of_the_files(made: Made) -> None:
    facts, download = made.packaged.facts, made.packaged.path / "download"
    assert facts["bytes_resident"] == (made.gguf.path / "model.gguf").stat().st_size
    assert facts["bytes_download"] == sum(p.stat().st_size for p in download.rglob("*") if p.is_file())
    assert facts["metrics"]["zstd_bytes_download"] == (download / "model.gguf.zst").stat().st_size
    assert facts["manifest_sha256"] == file_sha256(download / MANIFEST)
    assert facts["packaged_files"]["model.gguf"]["bytes_resident"] == facts["bytes_resident"]
    # What the input's facts say of the model stays.
    assert facts["bits_per_weight"] == made.gguf.facts["bits_per_weight"]


def test_a_gate_reads_both_sizes_of_a_packaged_model(made: Made) -> None:
    from cogumi.subjects import of_artifact
    from gates.service import ProfileEvidence

    evidence = ProfileEvidence(None, None, of_artifact(made.packaged, "packaged"))  # type: ignore[arg-type]
    for name in ("bytes_download", "bytes_resident"):
        assert evidence.metric(name, None, 0.05).value == made.packaged.facts[name]
    assert evidence.metric("zstd_bytes_download", None, 0.05).value < made.packaged.facts["bytes_download"]


def test_what_zstd_gains_is_told_for_each_type(made: Made) -> None:
    rows = {row["type"]: row for row in made.packaged.facts["zstd_types"]}
    assert set(rows) == {"q8_0", "f32"}
    for row in rows.values():
        assert row["sampled"] == row["bytes"]
        assert row["gain"] == pytest.approx(1 - row["stored"] / row["sampled"], abs=1e-5)
    # Vectors of ones are nearly nothing; eight-bit blocks of random weights are nearly all there is.
    assert rows["f32"]["gain"] > 0.5 > rows["q8_0"]["gain"] > -0.02


def test_a_model_folder_with_an_adapter_and_a_draft(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.model.path, tmp_path / "adapted"))
    (folder / "adapter").mkdir()
    save(folder / "adapter" / "adapter_model.safetensors", masked(8, 8, 0.0), "float32")
    source = artifact(folder, "model")
    result, packaged = run_stage(
        PACKAGE, PackageSettings(level=1, role="draft"), tmp_path / "work", {"model": source}
    )
    weights = [folder / "model.safetensors", folder / "adapter" / "adapter_model.safetensors"]
    assert result.kind == "model"
    assert result.facts["bytes_resident"] == sum(path.stat().st_size for path in weights)
    metrics = result.facts["metrics"]
    assert metrics["draft_bytes_download"] == result.facts["bytes_download"]
    assert metrics["draft_bytes_resident"] == result.facts["bytes_resident"]
    assert "zstd_bytes_download" not in metrics
    expand(packaged.path, tmp_path / "out")
    assert tree_files(tmp_path / "out") == tree_files(folder)
    # Packaged once more, only the model itself travels.
    again = run_stage(PACKAGE, PackageSettings(level=1), tmp_path / "again", {"model": packaged})[1]
    assert again.facts["bytes_download"] == packaged.facts["bytes_download"]


def test_a_pruned_folder_pays_for_no_zero(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    folder.mkdir()
    raw = save(folder / "model.safetensors", masked(512, 512, 0.65), "bfloat16")
    result, _ = run_stage(PACKAGE, FAST, tmp_path / "work", {"model": artifact(folder, "model")})
    stored = result.facts["packaged_files"]["model.safetensors"]["bytes_download"]
    # The kept weights at 16 bits and a map of one bit each would be the plain form.
    assert stored < 0.35 * len(raw) + 0.94 * 512 * 512 / 8 < 0.45 * len(raw)
    mask = result.facts["masks"]["model.safetensors"]
    assert mask["zeros"] == int((masked(512, 512, 0.65) == 0).sum())


def test_equal_inputs_give_equal_bytes_on_any_number_of_processors(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for processors in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processors: set(range(n)))
        result, packaged = run_stage(
            PACKAGE, PackageSettings(level=6), tmp_path / str(processors), {"model": made.gguf}
        )
        found.append((packaged.digest, dict(result.facts)))
    assert found[0] == found[1]


def test_a_dictionary_is_kept_only_where_it_saves_more_than_it_takes(tmp_path: Path, made: Made) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=12)) for _ in range(300)]
    folder = Path(shutil.copytree(made.model.path, tmp_path / "alike"))
    for number in range(60):
        # Many small files with the same words: the one case that a dictionary is for.
        (folder / f"note{number}.json").write_text(json.dumps(rng.sample(words, 40)))
    kept, packaged = run_stage(
        PACKAGE,
        PackageSettings(level=3, dictionary_bytes=8192),
        tmp_path / "a",
        {"model": artifact(folder, "model")},
    )
    assert kept.facts["dictionary"]["kept"]
    manifest = read_manifest(packaged.path / "download" / MANIFEST)
    assert manifest.dictionary is not None
    assert (packaged.path / "download" / manifest.dictionary.stored).is_file()
    expand(packaged.path, tmp_path / "out")
    assert tree_files(tmp_path / "out") == tree_files(folder)
    off, _ = run_stage(PACKAGE, FAST, tmp_path / "off", {"model": artifact(folder, "model")})
    assert kept.facts["bytes_download"] < off.facts["bytes_download"]
    one, without = run_stage(
        PACKAGE, PackageSettings(level=3, dictionary_bytes=8192), tmp_path / "b", {"model": made.gguf}
    )
    assert not one.facts["dictionary"]["kept"]
    assert sorted(p.name for p in (without.path / "download").iterdir()) == [MANIFEST, "model.gguf.zst"]


def test_without_zstd_every_file_travels_as_it_is(made: Made, tmp_path: Path) -> None:
    result, packaged = run_stage(PACKAGE, PackageSettings(level=None), tmp_path / "w", {"model": made.gguf})
    assert result.facts["packaged_files"]["model.gguf"]["codec"] == "none"
    assert "zstd_types" not in result.facts
    expand(packaged.path, tmp_path / "out")
    assert file_sha256(tmp_path / "out" / "model.gguf") == file_sha256(made.gguf.path / "model.gguf")


def test_a_dictionary_needs_enough_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert train_dictionary([tmp_path / "a"], 4096) is None
    assert train_dictionary([tmp_path / "a"], 0) is None


def test_a_data_set_is_not_packaged(tmp_path: Path) -> None:
    data = micro_data(tmp_path / "data", per_cell=1)
    with pytest.raises(RunError, match="is a dataset; only models and GGUF files"):
        run_stage(PACKAGE, FAST, tmp_path / "w", {"model": data})


def test_a_broken_gguf_is_named_by_the_table_of_types(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(RunError, match=r"model\.gguf"):
        type_gains([tmp_path / "model.gguf"], 3)


def test_a_packaging_that_was_killed_goes_on_with_the_files_that_were_finished(
    made: Made, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    _, packaged = run_stage(PACKAGE, FAST, work, {"model": made.model})
    finished = work / "scratch" / "plain" / "model.safetensors.tensors.zst"
    stamp = finished.stat().st_mtime_ns
    (work / "scratch" / "plain" / "tokenizer.json.zst").unlink()
    shutil.rmtree(work / "out")
    _, again = run_stage(PACKAGE, FAST, work, {"model": made.model})
    assert again.digest == packaged.digest
    assert finished.stat().st_mtime_ns == stamp


# What must be refused -------------------------------------------------------------------------------


def edited(package: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    change(manifest)
    (package / MANIFEST).write_text(json.dumps(manifest))


def refused(package: Path, out: Path, what: str, error: type[CogumiError] = RunError) -> None:
    with pytest.raises(error, match=what) as caught:
        expand(package, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.endswith(".partial")]


def test_a_package_cut_short(package: Path, tmp_path: Path) -> None:
    stored = package / "model.gguf.zst"
    stored.write_bytes(stored.read_bytes()[:-100])
    refused(package, tmp_path / "out", "bytes, .* expected; download it again")
    # Even where the manifest was made for the shorter file.
    edited(package, lambda m: m["files"][0].update(stored_bytes=stored.stat().st_size))
    edited(package, lambda m: m["files"][0].update(stored_sha256=file_sha256(stored)))
    refused(package, tmp_path / "out", "download it again")


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_package_is_found(
    share: float, bit: int, made: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bit")
    package = Path(shutil.copytree(made.packaged.path / "download", folder / "download"))
    content = bytearray((package / "model.gguf.zst").read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    (package / "model.gguf.zst").write_bytes(content)
    refused(package, folder / "out", "download it again|refused")


def test_a_bomb_stops_at_the_first_byte_too_many(package: Path, tmp_path: Path) -> None:
    # 256 MB of zeros in 10 KB: the manifest promises 1,000 bytes.
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    with (package / "model.gguf.zst").open("wb") as file:
        for _ in range(16):
            file.write(compressor.compress(bytes(1 << 24)))
        file.write(compressor.flush())
    bomb = package / "model.gguf.zst"
    edited(
        package,
        lambda m: m["files"][0].update(
            bytes=1000, stored_bytes=bomb.stat().st_size, stored_sha256=file_sha256(bomb)
        ),
    )
    refused(package, tmp_path / "out", "expands to more than the 1000 bytes")


def test_a_frame_that_wants_a_gigabyte_of_memory(package: Path, tmp_path: Path) -> None:
    stored = package / "model.gguf.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=False)
    stored.write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compressobj().flush())
    edited(
        package,
        lambda m: m["files"][0].update(stored_bytes=stored.stat().st_size, stored_sha256=file_sha256(stored)),
    )
    refused(package, tmp_path / "out", "download it again")


def test_a_container_that_claims_more_than_its_file(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, masked(64, 64, 0.5), "bfloat16")
    stored = package / "model.gguf.zst"
    stream = b"".join(encoded(path)).replace(b"8192", b"9e99", 1)
    compress([stream], stored, 3)
    edited(
        package,
        lambda m: m["files"][0].update(
            codec="tensors+zstd",
            stored_bytes=stored.stat().st_size,
            stored_sha256=file_sha256(stored),
        ),
    )
    refused(package, tmp_path / "out", "cut short or changed")


@pytest.mark.parametrize(
    "name", ["../out.gguf", "/etc/x", "a/../../b", "a//b", "C:\\x", "", ".", "a\x00b", "con "]
)
def test_a_name_that_leaves_the_folder(package: Path, tmp_path: Path, name: str) -> None:
    assert not is_inside(name)
    edited(package, lambda m: m["files"][0].update(name=name))
    refused(package, tmp_path / "out", "leaves the package's folder; nothing was written")
    edited(package, lambda m: m["files"][0].update(name="model.gguf", stored=name))
    refused(package, tmp_path / "out", "leaves the package's folder")


def test_names_that_meet(package: Path, tmp_path: Path) -> None:
    entry = json.loads((package / MANIFEST).read_text())["files"][0]
    edited(package, lambda m: m["files"].append({**entry, "stored": "b", "name": "MODEL.gguf"}))
    refused(package, tmp_path / "out", "stands there twice")
    edited(package, lambda m: m["files"][1].update(name="model.gguf/inner"))
    refused(package, tmp_path / "out", "is a file and a folder")


def test_a_link_in_place_of_a_file(package: Path, tmp_path: Path) -> None:
    stored = package / "model.gguf.zst"
    stored.rename(tmp_path / "elsewhere")
    stored.symlink_to(tmp_path / "elsewhere")
    refused(package, tmp_path / "out", "a link, where the package has a file")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.update(format=2), "a package of format 2, this version reads 1"),
        (lambda m: m.pop("format"), "a package of format None"),
        (lambda m: m["files"].clear(), "files: "),
        (lambda m: m["files"][0].update(bytes=-1), r"files\.0\.bytes"),
        (lambda m: m["files"][0].update(bytes="7"), r"files\.0\.bytes"),
        (lambda m: m["files"][0].update(codec="xz"), r"files\.0\.codec"),
        (lambda m: m["files"][0].update(sha256="0"), r"files\.0\.sha256"),
        (lambda m: m["files"][0].update(more=1), r"files\.0\.more"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "expands to something else"),
        (lambda m: m["files"][0].update(stored_sha256="0" * 64), "not what the manifest says"),
        (lambda m: m["files"][0].update(stored="gone"), "missing from the package"),
        (lambda m: m["files"][0].update(bytes=1 << 60), "disk full: the package takes"),
    ],
)
def test_a_manifest_that_is_wrong(
    package: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    edited(package, change)
    refused(package, tmp_path / "out", what)


def test_no_manifest_and_one_that_was_not_published(package: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not the manifest that was published"):
        expand(package, tmp_path / "out", manifest_sha256="0" * 64)
    expand(package, tmp_path / "out", manifest_sha256=file_sha256(package / MANIFEST))
    (package / MANIFEST).write_text("{")
    refused(package, tmp_path / "other", "no readable manifest")
    (package / MANIFEST).unlink()
    refused(package, tmp_path / "other", "no readable manifest")


def test_a_folder_that_exists_is_left_alone(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        expand(package, out)
    assert (out / "mine").read_text() == "x"


def test_a_full_disk_is_one_line_and_leaves_nothing(
    package: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(package, tmp_path / "out", "disk full while writing .*out")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="disk full while writing"):
        run_stage(PACKAGE, FAST, tmp_path / "work", {"model": made.gguf})


def test_a_kill_in_the_middle_leaves_no_folder_and_the_next_expansion_succeeds(
    package: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from pipeline.compression import expand\n"
        "def wait(done, total):\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "expand.expand(Path(sys.argv[1]), Path(sys.argv[2]), told=wait)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(package), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()
    expand(package, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["download", "out"]
