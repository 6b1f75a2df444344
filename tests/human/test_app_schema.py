"""Requests drawn from the app's own description: whatever is sent, no fault of the server's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from app_client import HOST, Person, Served, serving
from hypothesis import HealthCheck, given, settings
from small_study import small_plan

from dashboard.human_eval.security import HEADERS
from evals.human.store import StudyStore

_SERVER_ERROR = 500


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = StudyStore.create(tmp_path_factory.mktemp("schema") / "study", small_plan())
    with serving(store) as served:
        yield served


def answered(served: Served, person: Person, examples: int) -> Counter[tuple[str, int]]:
    """Send drawn requests to every operation; forms carry the person's own token. Return what came back."""
    csrf = person.form("/item/1").fields["csrf"]
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    told: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                case.body["csrf"] = csrf
            sent = case.as_transport_kwargs(base_url=HOST)
            sent.pop("cookies", None)
            answer = person.http.request(**sent)
            assert answer.status_code < _SERVER_ERROR, (sent, answer.text)
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS
            told[case.method, answer.status_code] += 1

        send()
    return told


def test_no_drawn_request_is_a_fault(served: Served) -> None:
    told = answered(served, served.rater(), examples=3)
    assert sum(told.values()) >= 2 * len(served.app.routes)
    assert told["GET", 404]
    assert told["POST", 422]


@pytest.mark.slow
def test_none_of_many_drawn_requests_is_a_fault(served: Served) -> None:
    admin = served.admin()
    rater = served.rater()
    rater.http.cookies.update(admin.http.cookies)
    told = answered(served, rater, examples=300)
    assert {("GET", 200), ("GET", 404), ("POST", 422), ("POST", 404)} <= set(told)
