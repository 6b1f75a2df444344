"""The page of quality, size and speed: the report's numbers, the gates' bounds, one broken file one line."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from cogumi.planned_model import PlannedModel, SizeTarget
from dashboard.models import Models, models_of
from dashboard.pareto import Value
from dashboard.places import AXES, KL, QUALITY, Choice, Place, frontiers_by_name, places, share_of
from dashboard.plan_lines import (
    Line,
    against_of,
    axis_lines,
    least_region,
    most_region,
    quality_lines,
    reference_level,
)
from dashboard.quality_plot import Frame, near_lines, quality_figure
from dashboard.relative import Standards, share
from dashboard.view import open_view
from gates.frontier import standings as kl_standings
from reports.schema import FrontierPart, FrontierPointPart

SIZE = Choice("download size", QUALITY, "general")
HOSTILE = '<a href="javascript:alert(1)">x</a> <b>bold</b> \u202eabc\x00'


@pytest.fixture(scope="module")
def models(workspace: Path) -> Models:
    return models_of(open_view(workspace, None))


@pytest.fixture(scope="module")
def standards(workspace: Path, models: Models) -> Standards:
    return Standards(open_view(workspace, None).workspace, models.profile, models.index)


def by_name(found: list[Place]) -> dict[str, Place]:
    return {place.name: place for place in found}


# Places -------------------------------------------------------------------------------------------


def test_scores_and_bounds_are_the_reports_own(models: Models) -> None:
    found = by_name(places(models, SIZE))
    for part in models.artifacts:
        suite = part.quality[0]
        assert suite.score is not None
        assert suite.lower is not None
        assert suite.upper is not None
        assert found[part.name].y == Value(suite.score, suite.lower, suite.upper)
        assert found[part.name].x == Value.exactly(part.bytes_download or 0)
    task = models.artifacts[0].quality[0].tasks[0]
    of_task = by_name(places(models, dataclasses.replace(SIZE, task=task.task)))
    assert of_task[models.artifacts[0].name].y == Value(task.score or 0, task.lower, task.upper)


def test_download_and_memory_are_two_axes_and_a_missing_number_leaves_a_model_out(models: Models) -> None:
    download = by_name(places(models, SIZE))["q4"]
    memory = by_name(places(models, dataclasses.replace(SIZE, x="size in memory")))["q4"]
    assert (download.x, memory.x) == (Value.exactly(48_000), Value.exactly(57_000))
    bits = by_name(places(models, dataclasses.replace(SIZE, x="bits a weight")))
    assert bits["q4"].drawn
    assert bits["q4"].standing == "best"
    assert not bits["base (attempt 2)"].drawn
    assert bits["base (attempt 2)"].standing is None
    speed = by_name(places(models, dataclasses.replace(SIZE, x="seconds an answer")))
    assert speed["q4"].x == Value.exactly(pytest.approx(0.02))


def test_a_ratio_is_the_reports_and_all_items_leave_no_chance(models: Models, standards: Standards) -> None:
    found = by_name(
        places(models, dataclasses.replace(SIZE, relative="gpt-4"), against_of(models, standards, "gpt-4"))
    )
    for part in models.artifacts:
        y, suite = found[part.name].y, part.quality[0]
        assert y is not None
        assert y.value == pytest.approx(suite.ratio)
        assert y.exact == (suite.n == suite.n_total)
        assert y.lower <= y.value <= y.upper


def test_a_model_is_a_reference_too(models: Models, standards: Standards) -> None:
    base = "base (attempt 2)"
    choice = dataclasses.replace(SIZE, relative=base)
    found = by_name(places(models, choice, against_of(models, standards, base)))
    assert found[base].y == Value.exactly(1.0)
    scores = {part.name: part.quality[0].score or 0.0 for part in models.artifacts}
    assert found["q4"].y is not None
    assert found["q4"].y.value == pytest.approx(scores["q4"] / scores[base])
    assert reference_level(models, choice, against_of(models, standards, base)) == pytest.approx(scores[base])


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """An index that knows the first items of one artifact only."""

    index: Any
    artifact: str
    n: int

    def best(self, artifact: str, task: str) -> Any:
        found = self.index.best(artifact, task)
        return (
            dataclasses.replace(found, scores=found.scores[: self.n]) if artifact == self.artifact else found
        )


def test_bounds_of_a_ratio_close_in_on_what_all_items_say(models: Models, standards: Standards) -> None:
    part = next(one for one in models.artifacts if one.name == "q4")
    tasks, against = [task.task for task in part.quality[0].tasks], standards.reference("gpt-4")
    whole = share(models.index, part.digest, tasks, against)
    assert whole is not None
    assert whole.simulated
    assert whole.most is not None
    widths = []
    for n in (5, 20, 60):
        some = share(_Prefix(models.index, part.digest, n), part.digest, tasks, against)  # type: ignore[arg-type]
        assert some is not None
        assert some.value.lower <= some.value.value <= some.value.upper <= whole.most
        assert some.value.lower <= whole.value.value <= some.value.upper
        widths.append(some.value.upper - some.value.lower)
    assert widths[0] > widths[1] > widths[2] > 0


def test_no_ratio_where_a_task_or_the_reference_is_unknown(models: Models, standards: Standards) -> None:
    part, against = models.artifacts[0], standards.reference("gpt-4")
    assert share(models.index, part.digest, ["micro/math", "micro/coding"], against) is None
    assert share(models.index, part.digest, ["micro/math"], lambda mine: None) is None
    assert share_of(models, part, dataclasses.replace(SIZE, suite="no such suite"), against) is None
    assert against_of(models, standards, "no such model") is None


# The plan -----------------------------------------------------------------------------------------


def test_bars_are_the_gates_own_in_the_unit_of_the_plot(models: Models, standards: Standards) -> None:
    level = reference_level(models, SIZE, standards.reference("gpt-4"))
    assert level == models.references[0].score
    lines = quality_lines(models, SIZE, standards)
    assert [(line.asked, line.at) for line in lines if "phase1/general" in line.label] == [
        (True, pytest.approx(0.88 * level))
    ]
    relative = quality_lines(models, dataclasses.replace(SIZE, relative="gpt-4"), standards)
    assert [line.at for line in relative if "phase1/general" in line.label] == [pytest.approx(0.88)]
    # Retention is of the base that this run's gate names.
    kept = quality_lines(models, dataclasses.replace(SIZE, relative="base (attempt 2)"), standards)
    assert [line.at for line in kept if "phase3/retention" in line.label] == [pytest.approx(0.98)]
    assert quality_lines(models, dataclasses.replace(SIZE, task="micro/math"), standards) == []


def test_tiers_stand_at_540_and_890_mb_and_bars_beside_them(models: Models) -> None:
    download = axis_lines(models, AXES["download size"])
    assert [line.at for line in download][:2] == [540e6, 890e6]
    assert "phase3/size" in download[0].label
    assert download[0].label.startswith("540 MB")
    memory = {line.at: line.label for line in axis_lines(models, AXES["size in memory"])}
    assert "of the download" in memory[540e6]
    assert "phase3/resident" in memory[650e6]
    assert axis_lines(models, AXES["bits a weight"]) == []


def test_arithmetic_rules_out_sizes_and_scores(models: Models, standards: Standards) -> None:
    assert least_region(models, AXES["download size"]) is None
    model = PlannedModel(
        name="planned",
        parameters=1_000_000_000,
        embedding_parameters=0,
        source="test",
        targets=(SizeTarget(criterion="phase3/size", bits=4),),
    )
    profile = models.profile.model_copy(update={"models": [model]})
    planned = dataclasses.replace(models, profile=profile)
    least = least_region(planned, AXES["download size"])
    assert least is not None
    assert (least.edge, least.below) == (500_000_000, True)
    bits = least_region(planned, AXES["bits a weight"])
    assert bits is not None
    assert bits.edge == pytest.approx(4.0)
    assert least_region(planned, AXES["tokens a second"]) is None
    most = most_region(models, dataclasses.replace(SIZE, relative="gpt-4"), standards)
    assert most is not None
    assert most.edge == pytest.approx(1 / models.references[0].score)
    perfect = most_region(models, SIZE, standards)
    assert perfect is not None
    assert perfect.edge == 1.0
    assert most_region(models, dataclasses.replace(SIZE, y="tokens a second"), standards) is None


# Divergence ---------------------------------------------------------------------------------------


def _point(number: int, size: int, kl: float, off: float) -> FrontierPointPart:
    known = {"bits_per_weight": None, "perplexity": None, "baseline_perplexity": None, "top1_agreement": None}
    return FrontierPointPart.model_validate(
        {
            "number": number,
            "name": f"point {number}",
            "recipe": "gguf",
            "bytes_resident": size + 5,
            "bytes_download": size,
            "kl": kl,
            "kl_lower": kl - off,
            "kl_upper": kl + off,
            "tokens": 800,
            "rows": 80,
            "standing": "",
            **known,
        }
    )


def test_divergences_from_one_model_along_the_same_rows_are_compared_alone(models: Models) -> None:
    points = [_point(3, 100, 0.2, 0.01), _point(4, 90, 0.1, 0.01), _point(99, 80, 0.5, 0.4)]
    parts = tuple(FrontierPart(baseline="base", points=found) for found in (points, points[:1]))
    with_kl = dataclasses.replace(models, frontiers=parts)
    assert list(frontiers_by_name(with_kl)) == ["base", "base, rows 2"]
    found = places(with_kl, dataclasses.replace(SIZE, y=KL, dense="base"))
    from gates.frontier import FrontierPoint

    theirs = kl_standings([FrontierPoint("", p.bytes_resident, p.bytes_download, p.kl, p.kl_lower, p.kl_upper)
                           for p in points])  # fmt: skip
    assert [place.standing for place in found] == theirs == ["behind", "best", "best"]
    assert [place.digest is None for place in found] == [False, False, True]
    alone = places(with_kl, dataclasses.replace(SIZE, y=KL, dense="base, rows 2"))
    assert [place.standing for place in alone] == ["best"]


# The figure ---------------------------------------------------------------------------------------


def _place(name: str, x: float, y: Value, standing: Any, kind: str = "gguf") -> Place:
    numbers = dict.fromkeys(AXES) | {"tokens a second": 10.0 * x}
    return Place(f"sha256:{name}", 1, name, kind, HOSTILE, Value.exactly(x), y, 9, 10, numbers, standing)


def _frame(**changes: Any) -> Frame:
    given: dict[str, Any] = {
        "x": AXES["download size"],
        "y_label": "Score",
        "better": SIZE.better,
        "log": True,
        "x_lines": [],
        "y_lines": [],
        "level": None,
        "x_region": None,
        "y_region": None,
        "divergence": False,
        "marks": "tokens a second",
        "colours": ("#000001", "#000002", "#000003", "#000004", "#000005"),
        "all_lines": False,
        "zoom": False,
    }
    return Frame(**{**given, **changes})


def _traces(fig: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in fig.data}


PLACES = [
    _place("small", 100, Value(0.5, 0.4, float("inf")), "best"),
    _place("large", 1000, Value.exactly(0.9), "best"),
    _place("worse", 1000, Value(0.2, 0.1, 0.3), "behind", "model"),
]


def test_the_frontier_is_a_stair_and_every_mark_knows_its_artifact() -> None:
    traces = _traces(quality_figure(_frame(), PLACES))
    assert list(traces["frontier"].x) == [100, 1000]
    assert traces["frontier"].line.shape == "hv"
    best = traces["best: none beats it"]
    assert [one["artifact"] for one in best.customdata] == ["sha256:small", "sha256:large"]
    # Told apart by shape and fill, not by colour alone.
    assert list(best.marker.symbol) == ["square", "square"]
    assert list(traces["behind a better one for sure"].marker.symbol) == ["circle-open"]
    # A larger mark is a faster model.
    assert best.marker.size[0] < best.marker.size[1]
    bounds = traces["bounds"]
    assert list(bounds.x) == [100, 1000]
    assert all(end < 2 for end in bounds.error_y.array), "an open bound ends at the edge of the plot"


def test_with_more_is_better_sideways_the_stair_goes_up_first_and_three_objectives_have_none() -> None:
    fast = _frame(x=AXES["tokens a second"], better=("more", "more"), log=False)
    assert _traces(quality_figure(fast, PLACES))["frontier"].line.shape == "vh"
    assert "frontier" not in _traces(quality_figure(_frame(better=("less", "more", "more")), PLACES))


def test_names_of_others_are_text_to_plotly() -> None:
    fig = quality_figure(_frame(), [dataclasses.replace(PLACES[0], name=HOSTILE)])
    told = _traces(fig)["best: none beats it"]
    for text in (told.text[0], told.hovertext[0]):
        assert "<a " not in text
        assert "&lt;a href" in text
        assert "\u202e" not in text
        assert "\x00" not in text


def test_far_lines_are_left_out_unless_asked_for_and_a_zoom_leaves_the_worst_out() -> None:
    lines = [Line(200.0, "near", True), Line(540e6, "far", True)]
    assert near_lines(_frame(x_lines=lines), PLACES) == lines[:1]
    assert near_lines(_frame(x_lines=lines, all_lines=True), PLACES) == lines
    assert quality_figure(_frame(x_lines=lines, all_lines=True), PLACES).layout.xaxis.range[1] > 8.7
    zoomed = quality_figure(_frame(zoom=True), PLACES)
    assert zoomed.layout.yaxis.range[0] > 0.3
    assert "behind a better one for sure" not in _traces(zoomed)


def test_a_divergence_of_nothing_has_a_place_on_a_logarithmic_axis() -> None:
    none = _place("same", 100, Value.exactly(0.0), "best")
    fig = quality_figure(_frame(divergence=True, better=("less", "less")), [none, PLACES[1]])
    assert min(min(trace.y) for trace in fig.data if trace.name != "frontier") == 1e-7
    assert fig.layout.yaxis.type == "log"


# The page -----------------------------------------------------------------------------------------


def told(app: Any) -> str:
    """All words of a page, without what keeps Markdown from reading them."""
    said = [*app.markdown, *app.caption, *app.warning, *app.info, *app.error]
    return "\n".join(str(one.value) for one in said).replace("\\", "").replace("\u2060", "")


def test_the_page_says_what_none_beats_and_what_is_not_told_apart(page: Any) -> None:
    app = page("quality")
    assert not app.exception
    assert not app.error
    assert not app.warning
    assert "None beats" in told(app)
    assert "540 MB" in told(app)
    assert [one.value for one in app.title] == ["Quality, size, speed"]


def test_the_address_holds_the_choice_and_what_it_does_not_know_is_said(page: Any) -> None:
    app = page("quality", x="size in memory", relative="gpt-4", three="true", mark="bits a weight")
    assert not app.exception
    assert not app.warning
    assert "Ratio to gpt-4" in told(app)
    assert "bytes in memory" in told(app)
    assert "simulated" in told(app)
    wrong = page("quality", x="weight", suite="nope", relative="gpt-9")
    assert len(wrong.warning) == 3
    assert not wrong.error
    assert not wrong.exception
    assert "Score on general" in told(wrong)


@pytest.mark.parametrize("kind", ["*.parquet", "meta.json"])
def test_one_corrupt_file_is_one_line_and_the_rest_is_drawn(copied: Path, page_of: Any, kind: str) -> None:
    models = models_of(open_view(copied, None))
    broken = next(one.digest for one in models.artifacts if one.name == "q8")
    files = sorted((copied / "evidence" / broken.removeprefix("sha256:")).rglob(kind))
    # As the harness writes: evidence comes and goes by a rename.
    files[0].unlink()
    files[0].write_bytes(b"PAR1 this is no file of ours")
    app = page_of(copied, "quality")
    assert not app.exception
    assert not app.error
    assert len(app.warning) == 1
    assert files[0].name in told(app)
    assert "**q4**" in told(app)
    assert "no score on general: **q8**" in told(app)


def test_a_missing_artifact_keeps_its_scores_and_loses_its_place(copied: Path, page_of: Any) -> None:
    models = models_of(open_view(copied, None))
    gone = next(one.digest for one in models.artifacts if one.name == "q8")
    shutil.rmtree(copied / "artifacts" / "objects" / gone.removeprefix("sha256:"))
    app = page_of(copied, "quality")
    assert not app.exception
    assert not app.error
    assert "no download size: **q8**" in told(app)


def test_a_run_without_models_says_what_to_type(page: Any) -> None:
    app = page("quality", run="older-1")
    assert not app.exception
    assert not app.error
    assert [one.value for one in app.code if "cogumi" in one.value] == ["cogumi run"]
