"""FLOPs against torch's own count, peaks by name, energy from counters, and what survives a resume."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cogumi.errors import RunError
from pipeline.training import energy
from pipeline.training.energy import Counter, EnergyMeter, PowerIntegral, rapl_sources
from pipeline.training.flops import (
    flops_per_token,
    forward_flops_per_token,
    linear_parameters,
    peak_flops,
    peak_of,
)
from pipeline.training.meters import Meter

ROWS, LENGTH, RANK = 2, 32, 4


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def small_llama(layers: int = 6) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def counted(model: Any, *, backward: bool = True) -> float:
    """FLOPs of a token as torch counts them, with the head on the second half of each row."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 96, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        hidden = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
        states = hidden(input_ids=ids, use_cache=False).last_hidden_state[:, LENGTH // 2 :]
        head = model.get_output_embeddings()
        loss = head(states).float().logsumexp(-1).sum()
        if backward:
            loss.backward()
    return float(counter.get_total_flops()) / ids.numel()


# FLOPs --------------------------------------------------------------------------------------------


def test_full_training_is_what_torch_counts() -> None:
    model = small_llama()
    # The mask and the rotary angles cost a few products that no model FLOP stands for.
    expected = flops_per_token(model.config, None, supervised_share=0.5, row_tokens=LENGTH)
    assert expected == pytest.approx(counted(model), rel=0.01)


def test_lora_is_what_torch_counts() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        small_llama(), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = model.get_base_model().config
    found = flops_per_token(config, adapters, supervised_share=0.5, row_tokens=LENGTH)
    assert found is not None
    # Nothing below the first layer learns, so torch takes no gradient of what its three projections read.
    spared = 2 * 64 * (64 + 2 * 32) + 3 * 2 * RANK * 64
    assert found - spared == pytest.approx(counted(model), rel=0.01)
    full = flops_per_token(config, None, supervised_share=0.5, row_tokens=LENGTH)
    assert full is not None
    assert found < 0.8 * full


def test_a_forward_pass_is_what_torch_counts() -> None:
    model = small_llama()
    found = forward_flops_per_token(model.config, supervised_share=0.5, row_tokens=LENGTH)
    assert found == pytest.approx(counted(model, backward=False), rel=0.01)


def test_the_linear_layers_of_the_plans_model() -> None:
    """8,030,261,248 parameters, less two embeddings of 128,256 x 4,096 and 65 norms of 4,096."""
    shape = SimpleNamespace(
        model_type="llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
    )
    linear = linear_parameters(shape)
    assert linear == 8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096
    found = flops_per_token(shape, 0, supervised_share=0.0, row_tokens=0)
    assert found == 4 * linear


def test_no_arithmetic_for_a_model_type_that_is_not_known() -> None:
    shape = SimpleNamespace(model_type="mixtral", hidden_size=64)
    assert linear_parameters(shape) is None
    assert flops_per_token(shape, None, supervised_share=1.0, row_tokens=1) is None
    assert forward_flops_per_token(shape, supervised_share=1.0, row_tokens=1) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.4e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla T4", 65e12),
        ("H100 SXM", 989.4e12),
        ("A100 40GB", 312e12),
        # Others by almost the same name, whose peak is another one.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_a_cpu_has_no_peak() -> None:
    import torch

    assert peak_flops(torch.device("cpu")) is None
    assert peak_flops("cpu") is None


# Energy -------------------------------------------------------------------------------------------


def rapl(folder: Path, name: str, label: str, used: int) -> Path:
    zone = folder / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(label + "\n")
    (zone / "energy_uj").write_text(f"{used}\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    return zone


def test_packages_are_summed_and_a_wrap_is_seen(tmp_path: Path) -> None:
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    second = rapl(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    rapl(tmp_path, "intel-rapl:0:0", "core", 1)
    rapl(tmp_path, "intel-rapl:2", "psys", 1)
    with EnergyMeter(rapl_sources(tmp_path)) as meter:
        (first / "energy_uj").write_text("2000000")
        (second / "energy_uj").write_text("11000000")
        assert meter.joules() == pytest.approx(1 + 2 + 6)
    assert not any(thread.name == "energy" for thread in threading.enumerate())


def test_no_counter_is_no_figure(tmp_path: Path) -> None:
    assert rapl_sources(tmp_path / "none") == []
    zone = rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").unlink()
    assert rapl_sources(tmp_path) == []
    meter = EnergyMeter([])
    meter.start()
    assert meter.stop() is None


def test_a_counter_that_stops_answering_leaves_no_half_sum() -> None:
    def failing() -> float:
        raise OSError("gone")

    broken = Counter(lambda: 1.0)
    meter = EnergyMeter([Counter(lambda: 5.0), broken])
    meter.start()
    assert meter.joules() == 0
    broken._read = failing
    assert meter.joules() is None
    assert meter.stop() is None


def test_power_is_integrated_by_trapezoids() -> None:
    clock, watts = Clock(), iter([100.0, 100.0, 300.0])
    source = PowerIntegral(lambda: next(watts), clock)
    source.start()
    clock.now += 10
    source.sample()
    clock.now += 2
    source.sample()
    assert source.joules == pytest.approx(10 * 100 + 2 * 200)


class Nvml(types.ModuleType):
    """NVML as nvidia-ml-py shows it: a counter in mJ where the GPU has one, power in mW on all."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, counters: dict[str, int], *, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.counters, self.driver = counters, driver

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle not in self.counters:
            raise self.NVMLError("Not Supported")
        return self.counters[handle]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 250_000


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    import torch

    nvml = Nvml({"GPU-0": 7_000, "GPU-1": 1_000})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=index))
    return nvml


def test_gpus_are_summed_by_their_own_counters(two_gpus: Nvml) -> None:
    meter = EnergyMeter.of("cuda", (0, 1))
    meter.start()
    two_gpus.counters |= {"GPU-0": 9_500, "GPU-1": 1_500}
    assert meter.stop() == pytest.approx(2.5 + 0.5)


def test_a_gpu_without_a_counter_is_sampled(two_gpus: Nvml) -> None:
    two_gpus.counters.clear()
    (source,) = energy.nvml_sources((0,))
    assert isinstance(source, PowerIntegral)
    source.start()
    source.sample()
    assert source._last[1] == 250


def test_no_driver_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({}, driver=False))
    assert energy.nvml_sources((0,)) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.nvml_sources((0,)) == []


# Meter --------------------------------------------------------------------------------------------


class Joules:
    """A counter that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(meter: Meter, clock: Clock, seconds: float, tokens: int) -> None:
    clock.now += seconds
    meter.count(tokens, supervised=tokens // 2, padding=tokens // 10)


def test_a_cpu_tells_what_it_knows_and_no_more() -> None:
    clock = Clock()
    meter = Meter("cpu", flops=1e9, energy=EnergyMeter([]), clock=clock)
    clock.now += 100
    meter.start()
    for _ in range(10):
        step(meter, clock, 2, 1000)
    with meter.aside():
        clock.now += 5
    found = meter.metrics()
    assert found["seconds"] == pytest.approx(25)
    assert found["tokens_per_second"] == pytest.approx(10_000 / 20)
    assert found["peak_bytes"] > 1e6
    assert sorted(found) == ["gpus", "peak_bytes", "seconds", "tokens_per_second"]
    assert (meter.tokens, meter.supervised, meter.padding) == (10_000, 5_000, 1_000)
    clock.now += 50
    assert meter.metrics() == found
    assert meter.facts() == {"tok_s": 500}


def test_before_the_first_step_no_rate_is_told() -> None:
    meter = Meter("cpu", energy=EnergyMeter([]), clock=Clock())
    meter.start()
    assert meter.facts() == {}
    assert meter.metrics()["tokens_per_second"] == 0


def test_the_live_rate_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    meter = Meter("cpu", energy=EnergyMeter([]), clock=clock)
    meter.start()
    for _ in range(100):
        step(meter, clock, 1, 1000)
    for _ in range(60):
        step(meter, clock, 1, 100)
    assert meter.facts() == {"tok_s": 100}


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> Any:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 40_000_000_000)
    return torch.device("cuda", 0)


def test_utilisation_is_flops_over_the_peak_of_all_gpus(h100: Any) -> None:
    clock = Clock()
    meter = Meter(h100, flops=30e9, gpus=(0, 1), energy=EnergyMeter([]), clock=clock)
    meter.start()
    step(meter, clock, 10, 300_000)
    assert meter.facts() == {
        "tok_s": 30_000,
        "mfu": pytest.approx(30e9 * 30_000 / (2 * 989.4e12), abs=1e-4),
        "gpu_seconds": 20,
    }
    found = meter.metrics()
    assert found["model_flop_utilization"] == pytest.approx(30e9 * 30_000 / (2 * 989.4e12))
    assert (found["peak_bytes"], found["gpus"]) == (40e9, 2)
    assert found["gpu_hours"] == pytest.approx(20 / 3600)


def test_a_resume_counts_what_was_paid_before_and_rates_of_its_own(h100: Any, tmp_path: Path) -> None:
    """A process that is killed after 40 s, at the last count 35 s; the next one begins again for 20 s."""
    clock, joules = Clock(), Joules()
    killed = Meter(h100, scratch=tmp_path, energy=EnergyMeter([Counter(joules)]), clock=clock)
    killed.start()
    for _ in range(7):
        joules.now += 500
        step(killed, clock, 5, 1000)
    clock.now += 5
    meter = Meter(h100, scratch=tmp_path, energy=EnergyMeter([Counter(joules)]), clock=clock)
    meter.start()
    joules.now += 250
    step(meter, clock, 20, 8000)
    assert meter.facts()["gpu_seconds"] == 30 + 20
    found = meter.metrics()
    # The file is at most ten seconds old: it was written at 30 s, with six of the seven amounts.
    assert found["gpu_hours"] == pytest.approx(50 / 3600)
    assert found["joules"] == pytest.approx(6 * 500 + 250)
    assert (found["seconds"], found["tokens_per_second"]) == (pytest.approx(20), pytest.approx(400))


def test_energy_that_an_earlier_process_could_not_tell_stays_unknown(h100: Any, tmp_path: Path) -> None:
    clock = Clock()
    first = Meter(h100, scratch=tmp_path, energy=EnergyMeter([]), clock=clock)
    first.start()
    step(first, clock, 1, 10)
    first.stop()
    second = Meter(h100, scratch=tmp_path, energy=EnergyMeter([Counter(Joules())]), clock=clock)
    second.start()
    assert "joules" not in second.metrics()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "meter.json").write_text('{"seconds": null}')
    with pytest.raises(RunError, match=r"meter\.json: unreadable .* delete it and run again"):
        Meter("cpu", scratch=tmp_path)
