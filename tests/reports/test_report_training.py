"""What a report tells of training: figures as recorded, unknown as unknown, both losses in one plot."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import Maker

from cogumi.profile import GpuPrice
from reports import rows, text
from reports.loss_plot import HEIGHT, WIDTH, loss_plot
from reports.model import build_report
from reports.render_html import render_html
from reports.render_markdown import render_markdown
from reports.schema import LookPart, Report, TrainingPart
from reports.training import left_out, looks_of, objective_told


def report_of(maker: Maker) -> Report:
    return build_report(maker.workspace, maker.run)


def trained(maker: Maker, **metrics: float) -> TrainingPart:
    model = maker.artifact("model", 10, tokens_seen=1000, rows=5)
    maker.step("base", 1, model, **metrics)
    (found,) = rows.trainings_of(report_of(maker))
    return found[1]


def cells(maker: Maker) -> dict[str, list[str]]:
    return dict(rows.training_table(report_of(maker)))


def test_figures_are_those_of_ledger_and_manifest(filled: Maker) -> None:
    assert [name for name, _ in rows.trainings_of(report_of(filled))] == [
        "base, attempt 1",
        "base, attempt 2",
    ]
    assert cells(filled) == {
        "Objective": ["fine-tuning", "fine-tuning"],
        "Tokens seen": ["906 k", "906 k"],
        "Supervised tokens": ["61.2 %", "61.2 %"],
        "Padding": ["0.0 %", "0.0 %"],
        "Rows": ["4,704, and 96 held out"] * 2,
        "Rows left out": ["7: longer than the context or max_length"] * 2,
        "Trainable parameters": ["31 k (2.5 %)"] * 2,
        "Optimizer steps": ["150", "600"],
        "Lowest held-out loss": ["1.1", "1.1"],
        "Tokens per second": ["9,000", "9,100"],
        "Model FLOP utilisation": ["–", "41.0 %"],
        "Peak memory": ["700 MB", "–"],
        "Time": ["20 s", "2 min 0 s"],
        "Energy": ["–", "1.5 kWh"],
        "Cost": ["no GPU", "$3.00 for 1.5 GPU hours"],
    }


def test_both_pages_have_the_table_the_losses_and_the_cost(filled: Maker) -> None:
    report = report_of(filled)
    page, markdown = render_html(report), render_markdown(report)
    root = Xml.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    section = next(one for one in root.iter("section") if one.get("id") == "training")
    told = " ".join("".join(section.itertext()).split())
    wanted = [cell for _, row in rows.training_table(report) for cell in row]
    wanted.append(
        "held-out loss from 6.6 to 1.1; training loss from 3 to 1.5; lowest held-out loss 1.1 at step 150"
    )
    assert [one for one in wanted if one not in told] == []
    assert [one for one in wanted if one not in markdown] == []
    assert len(list(section.iter("{http://www.w3.org/2000/svg}svg"))) == 2
    gpu = "GPU hours: 1.5 on H100 SXM, $3.00 at $2.00 an hour (test)."
    assert gpu in page
    assert gpu in markdown


def test_gpu_time_of_another_run_is_not_paid_twice(filled: Maker) -> None:
    model = filled.artifact("model", 9, tokens_seen=10)
    filled.step("base", 3, model, note="the same work was done in run other", gpus=1.0, gpu_hours=7.0)
    gpu = report_of(filled).money.gpu
    assert gpu is not None
    assert (gpu.hours, gpu.usd) == (1.5, 3.0)


def test_an_unknown_price_is_unknown(maker: Maker) -> None:
    maker.profile = maker.profile.model_copy(update={"gpu": GpuPrice(name="H100 SXM", source="test")})
    maker.start()
    part = trained(maker, seconds=3600.0, gpus=2.0)
    assert (part.gpu_hours, part.gpu_usd) == (2.0, None)
    assert cells(maker)["Cost"] == ["unknown for 2 GPU hours"]
    assert "GPU hours: 2 on H100 SXM, unknown (test)." in render_markdown(report_of(maker))


def test_a_step_that_trained_nothing_has_no_section(maker: Maker) -> None:
    maker.step("base", 1, maker.artifact("model", 10, steps=3, bytes=10))
    report = report_of(maker)
    assert rows.trainings_of(report) == []
    assert 'id="training"' not in render_html(report)
    assert "#training" not in render_html(report)
    assert "## Training" not in render_markdown(report)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "fine-tuning"),
        ({"method": "lora"}, "fine-tuning, LoRA"),
        ({"method": "full", "distill": {"weight": 0.5}}, "fine-tuning with distillation, full"),
        ({"method": "lora", "objective": "fomaml"}, "first-order MAML, LoRA"),
    ],
)
def test_the_objective_in_words(given: dict[str, Any], told: str) -> None:
    assert objective_told(given) == told


def test_rows_left_out_are_told_with_why() -> None:
    facts = {"rows": 10, "held_out_rows": 2, "too_long_rows": 0, "empty_rows": 3, "control_token_rows": 1}
    assert [(one.rows, one.why) for one in left_out(facts)] == [(3, "no answer"), (1, "control token")]


def test_energy_and_shares_have_units() -> None:
    told = [text.energy(value) for value in (None, 12.34, 5_000, 3.6e5, 7.2e6)]
    assert told == ["–", "12.3 J", "5 kJ", "0.1 kWh", "2 kWh"]
    assert [text.percent(value) for value in (None, 0.0, 0.4123)] == ["–", "0.0 %", "41.2 %"]


# The plot -----------------------------------------------------------------------------------------

losses = st.none() | st.floats(1e-6, 1e4)
look_parts = st.lists(
    st.builds(LookPart, step=st.integers(0, 10**6).map(float), train_loss=losses, held_out_loss=losses),
    max_size=40,
    unique_by=lambda look: look.step,
)


@settings(max_examples=60, deadline=None)
@given(look_parts)
def test_a_plot_stays_within_its_frame_and_names_do_not_touch(looks: list[LookPart]) -> None:
    looks = sorted(looks, key=lambda look: look.step)
    found = loss_plot(looks, "held-out", "a < b & c")
    several = [
        sum(getattr(look, name) is not None for look in looks) > 1 for name in ("train_loss", "held_out_loss")
    ]
    assert bool(found) == any(several)
    if not found:
        return
    picture = Xml.fromstring(found)
    assert picture.get("aria-label") == "a < b & c"
    for line in picture.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in str(line.get("points")).split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
    words = [one for one in picture.iter() if one.get("class") == "p-label"]
    assert len(words) == sum(several)
    heights = [float(str(one.get("y"))) for one in words]
    assert all(abs(a - b) >= 15 for k, a in enumerate(heights) for b in heights[k + 1 :])
    ticks = [float(str(one.get("y"))) for one in picture.iter() if one.get("class") == "p-tick"]
    assert all(0 <= y <= HEIGHT for y in [*heights, *ticks])


def test_axes_have_units_and_the_curves_differ_without_colour() -> None:
    looks = [
        LookPart(step=float(10 * k), train_loss=3.0 - 0.1 * k if k else None, held_out_loss=3.2 - 0.1 * k)
        for k in range(10)
    ]
    found = loss_plot(looks, "held-out", "t")
    assert "loss, nats per answer token" in found
    assert "optimizer step" in found
    assert found.count('<polyline class="p-curve"') == found.count('<polyline class="p-curve-train"') == 1
    assert len(re.findall("<circle", found)) == 10
    wide = loss_plot([*looks, LookPart(step=100.0, train_loss=None, held_out_loss=0.01)], "held-out", "t")
    assert "logarithmic" in wide
    assert "logarithmic" not in found


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["step", "held_out_loss", "train_loss", "x"]), inner)
    ),
    max_leaves=12,
)


@given(anything)
def test_facts_of_any_shape_make_looks_or_none(looks: object) -> None:
    found = looks_of({"looks": looks})
    assert found == [] or len(found) > 1
    for look in found:
        numbers = [value for value in (look.step, look.train_loss, look.held_out_loss) if value is not None]
        assert len(numbers) > 1
        assert all(math.isfinite(value) for value in numbers)
