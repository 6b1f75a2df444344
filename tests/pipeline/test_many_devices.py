"""Training on two devices: processes on this CPU, joined by Gloo, against one process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from micro_stages import Updates, artifact, micro_data, run_stage

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from pipeline.training.data import training_file
from pipeline.training.launch import DevicesSettings, train_together
from pipeline.training.micro_model import MICRO_MODEL, MicroModelSettings
from pipeline.training.sft import SFT, LoraSettings, SftSettings

TINY = MicroModelSettings(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, vocab_size=400)
# Three bins in a step, so that one of two processes has one more.
FULL = SftSettings(
    steps=12, batch_tokens=256, micro_batch_tokens=100, learning_rate=3e-3, held_out_share=0.1, eval_every=4
)
LORA = FULL.model_copy(update={"method": "lora", "dtype": "bf16", "lora": LoraSettings(rank=4, alpha=8)})
SETTINGS = {"full": FULL, "lora": LORA}
TWO = DevicesSettings(count=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def inputs(folder: Path) -> Mapping[str, Artifact]:
    data = micro_data(folder / "data", per_cell=12)
    return {"data": data, "model": run_stage(MICRO_MODEL, TINY, folder / "model", {"data": data})[1]}


@pytest.fixture(scope="module")
def alone(folder: Path, inputs: Mapping[str, Artifact]) -> Mapping[str, tuple[dict[str, Any], Artifact]]:
    """Facts and artifact of both trainings in one process."""
    found = {name: run_stage(SFT, s, folder / f"alone-{name}", inputs) for name, s in SETTINGS.items()}
    return {name: (dict(result.facts), made) for name, (result, made) in found.items()}


class Killing(Updates):
    """Kills the second training process when the first tells of its progress and a file is there."""

    def __init__(self, after: Path) -> None:
        super().__init__()
        self._after = after

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        super().update(done, total, **facts)
        for status in Path("/proc").glob("[0-9]*/stat") if self._after.exists() else ():
            # Others end while their files are read.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = status.read_text().rpartition(")")[2].split()[1]
                if parent == str(os.getpid()) and b"\0RANK=1\0" in status.with_name("environ").read_bytes():
                    os.kill(int(status.parent.name), signal.SIGKILL)


def task(folder: Path, settings: SftSettings, inputs: Mapping[str, Artifact], strategy: str) -> Any:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    job = {
        "model": str(inputs["model"].path),
        "model_digest": inputs["model"].digest,
        "data": str(training_file(inputs["data"])),
        "out": str(folder / "out"),
        "scratch": str(folder / "scratch"),
        "seed": 7,
    }
    return {"settings": settings.model_dump(mode="json"), "job": job, "strategy": strategy}


@pytest.fixture(scope="module")
def together(folder: Path, inputs: Mapping[str, Artifact]) -> str:
    """Do everything on two devices in one start; return what is said when one of them is killed."""
    spoilt = FULL.model_copy(update={"learning_rate": 1e30})
    trainings = [
        task(folder / "spoilt", spoilt, inputs, "ddp"),
        task(folder / "ddp-lora", LORA, inputs, "ddp"),
        task(folder / "fsdp-lora", LORA, inputs, "fsdp"),
        task(folder / "fsdp-full", FULL, inputs, "fsdp"),
        task(folder / "killed", FULL, inputs, "ddp"),
    ]
    killing = Killing(after=folder / "killed" / "scratch" / "step-00000008")
    with pytest.raises(RunError) as caught:
        train_together("many_devices_work:several", trainings, TWO, killing, logs=folder / "logs")
    return str(caught.value)


def close(made: Artifact, other: Artifact, noise: float) -> None:
    """Hold the weights of two models against each other: equal but for the order of additions."""
    import torch
    from safetensors.torch import load_file

    one, two = (load_file(found.file("model.safetensors")) for found in (made, other))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert weights.dtype == two[name].dtype
        # A weight merged in bf16 may fall to the neighbouring number.
        apart = 1e-2 if weights.dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(weights.float(), two[name].float(), rtol=apart, atol=2 * noise), name


def losses(facts: Mapping[str, Any]) -> list[float]:
    return [value for look in facts["looks"] for name, value in look.items() if name != "step"]


def told(folder: Path) -> Any:
    return json.loads((folder / "told.json").read_text())


# Half precision rounds as the number of threads has it: its noise is larger.
@pytest.mark.parametrize(("kind", "noise"), [("ddp-lora", 2e-4), ("fsdp-lora", 2e-4), ("fsdp-full", 1e-5)])
def test_two_devices_learn_what_one_learns(
    folder: Path, together: str, alone: Any, kind: str, noise: float
) -> None:
    assert together
    facts, made = alone[kind.partition("-")[2]]
    found = told(folder / kind)["facts"]
    assert losses(found) == pytest.approx(losses(facts), abs=noise)
    for name in ("tokens_seen", "supervised_share", "padding_share", "trainable_parameters", "rows", "steps"):
        assert found[name] == facts[name]
    close(artifact(folder / kind / "out", "model"), made, noise)


def test_gradients_are_added_up_and_not_averaged(folder: Path, together: str) -> None:
    assert together
    found = told(folder / "fsdp-lora")["world"]
    assert found["total"] == [2.0, 1.0]
    assert found["threads"] == found["threads_used"] == max(1, len(os.sched_getaffinity(0)) // 2)
    # 1 + 2, and 10 + nothing; then clipped to a norm of 1.
    norm = (4 * 3.0**2 + 4 * 10.0**2) ** 0.5
    assert found["replicated"]["norm"] == pytest.approx(norm)
    assert found["replicated"]["both"] == pytest.approx([3 / norm] * 4)
    assert found["replicated"]["one"] == pytest.approx([10 / norm] * 4)
    assert found["replicated"]["nobody"]
    # Three rows on two processes: each counts once, and what only keeps step not at all.
    assert found["sharded"]["norm"] == pytest.approx(15**0.5)
    assert found["sharded"]["gradient"] == pytest.approx([15**-0.5] * 15)
    assert found["sharded"]["held"] == [6, 9]
    assert found["sharded"]["filled"] == list(range(30, 45))


def test_a_loss_that_is_no_number_is_one_line(folder: Path, together: str) -> None:
    assert together
    assert told(folder / "spoilt")["error"].startswith("training diverged: ")


def test_a_killed_process_ends_all_and_other_devices_go_on(
    folder: Path, inputs: Mapping[str, Artifact], alone: Any, together: str
) -> None:
    assert together == (
        "training process 2 of 2 was ended by SIGKILL: too little memory, or someone stopped it; "
        "run again to go on from its last checkpoint"
    )
    facts, whole = alone["full"]
    # Told after every look: killed after a checkpoint, and before the end.
    scratch = folder / "killed" / "scratch"
    assert [found.name for found in scratch.glob("step-*")] == ["step-00000008"]
    for name, devices in {"one": DevicesSettings(), "two": DevicesSettings(count=2, strategy="fsdp")}.items():
        shutil.copytree(scratch, folder / name / "scratch")
        updates, settings = Updates(), FULL.model_copy(update={"devices": devices})
        result, made = run_stage(SFT, settings, folder / name, inputs, progress=updates)
        assert losses(result.facts) == pytest.approx(losses(facts), abs=1e-5)
        assert result.metrics["seconds"] > 0
        done = [seen[0] for seen in updates.seen if seen[0]]
        # Not from the start again: step 8 is behind it.
        assert done[0] > 8
        assert updates.seen[-1][:2] == (12, 12)
        close(made, whole, 1e-5)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGUMI_DEVICES", "2")
    assert DevicesSettings(count="all").processes() == 2
    assert DevicesSettings().processes() == 1
    with pytest.raises(UsageError, match=r"devices.count: 3 devices are asked for and 2 are here"):
        DevicesSettings(count=3).processes()
