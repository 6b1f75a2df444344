from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cogumi.errors import UsageError
from cogumi.prices import PriceTable, price_of, price_table
from cogumi.profile import Teacher
from cogumi.strict_yaml import load_strict
from cogumi.teachers.pricing import cost_usd
from cogumi.teachers.types import Usage

OPENROUTER = "https://openrouter.ai/api/v1"
SONNET = "claude-sonnet-4-20250514"


def teacher(model: str, base_url: str | None = None, **more: Any) -> Teacher:
    api = "anthropic" if model.startswith("claude") else "openai"
    return Teacher.model_validate({"api": api, "model": model, "base_url": base_url, **more})


def test_every_row_says_where_and_when_it_was_read() -> None:
    for row in price_table().prices:
        assert row.source.startswith("https://")
        assert date(2026, 1, 1) <= row.read_on <= date.today()
        # Only a free variant costs nothing.
        assert (row.input_usd_per_mtok == 0) == row.model.endswith(":free")
        assert (row.output_usd_per_mtok == 0) == (row.input_usd_per_mtok == 0)
        assert (row.provider == "anthropic") == (row.cache_write_usd_per_mtok is not None)
        if row.cache_write_usd_per_mtok is not None and row.cache_write_1h_usd_per_mtok is not None:
            assert row.cache_read_usd_per_mtok is not None
            assert row.cache_read_usd_per_mtok < row.input_usd_per_mtok
            assert row.input_usd_per_mtok < row.cache_write_usd_per_mtok < row.cache_write_1h_usd_per_mtok
        if row.retired_on is not None:
            assert price_table().row(row.provider, None, row.successor or "") is not None


@pytest.mark.parametrize(
    ("model", "base_url", "prices"),
    [
        ("gpt-4o-mini", None, (0.15, 0.60)),
        ("gpt-4o-mini", "https://api.openai.com/v1", (0.15, 0.60)),
        ("gpt-4o", None, (2.5, 10)),
        ("gpt-4", None, (30, 60)),
        ("gpt-4-0613", None, (30, 60)),
        (SONNET, None, (3, 15)),
        ("deepseek/deepseek-chat-v3-0324", OPENROUTER, (0.27, 1.10)),
        ("deepseek/deepseek-chat-v3-0324:free", OPENROUTER, (0, 0)),
        ("meta-llama/llama-3.1-405b-instruct", OPENROUTER, (0.8, 0.8)),
        ("meta-llama/llama-3.1-405b-instruct:free", OPENROUTER, (0, 0)),
        # Another host, another variant, another model: nobody said what they cost.
        ("gpt-4o-mini", "https://example.org/v1", (None, None)),
        ("gpt-4o-mini", OPENROUTER, (None, None)),
        ("qwen/qwen3-coder:free", OPENROUTER, (None, None)),
        ("gpt-5", None, (None, None)),
        # The local teacher plays a paid model.
        ("gpt-4o-mini", "local", (None, None)),
        # On loopback nobody sends a bill.
        ("anything", "http://127.0.0.1:8080/v1", (0, 0)),
        ("anything", "http://[::1]:8080/v1", (0, 0)),
        ("anything", "http://localhost/v1", (0, 0)),
    ],
)
def test_the_price_goes_by_endpoint_and_model(
    model: str, base_url: str | None, prices: tuple[float | None, float | None]
) -> None:
    price = price_of(teacher(model, base_url))
    assert (price.input_usd_per_mtok, price.output_usd_per_mtok) == prices
    assert price.known == (None not in prices)
    config = teacher(model, base_url).config("t", local_url="http://127.0.0.1:1")
    assert (config.input_usd_per_mtok, config.output_usd_per_mtok) == prices
    assert (cost_usd(config, Usage(10, 10), batch=False) is None) == (None in prices)
    assert config.price_source == price.source
    assert any(word in price.source for word in ("unknown", "this machine", "read 2026-"))


def test_a_gguf_of_ours_costs_nothing_because_it_runs_here() -> None:
    price = price_of(teacher("m", gguf="model.gguf"))
    assert (price.input_usd_per_mtok, price.output_usd_per_mtok) == (0, 0)
    assert "runs on this machine" in price.source


def test_prices_of_the_profile_win() -> None:
    own = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0, "price_source": "contract"}
    price = price_of(teacher("gpt-4o-mini", **own))
    assert (price.input_usd_per_mtok, price.output_usd_per_mtok) == (1, 2)
    assert price.source == "profile: contract"
    # What a batch saves is the provider's, unless the profile says otherwise.
    assert price.batch_discount == 0.5
    assert price_of(teacher("gpt-4o-mini", **own, batch_discount=0.3)).batch_discount == 0.3
    assert price_of(teacher("gpt-4o-mini", batch_discount=0.3)).batch_discount == 0.3
    # Nobody states one for this endpoint: no saving is assumed.
    assert price_of(teacher("gpt-4o-mini", "https://example.org/v1", **own)).batch_discount == 0
    assert price_of(teacher("x", "http://127.0.0.1:1/v1", **own)).input_usd_per_mtok == 1


def test_half_a_price_is_refused() -> None:
    with pytest.raises(ValueError, match="both input_usd_per_mtok and output_usd_per_mtok"):
        teacher("gpt-4o-mini", input_usd_per_mtok=1.0)


def test_cached_input_has_the_rows_own_prices() -> None:
    config = teacher(SONNET).config("t")
    million = 1_000_000
    assert cost_usd(config, Usage(million, 0), batch=False) == pytest.approx(3)
    assert cost_usd(config, Usage(0, million), batch=False) == pytest.approx(15)
    assert cost_usd(config, Usage(0, 0, cache_write_tokens=million), batch=False) == pytest.approx(3.75)
    assert cost_usd(config, Usage(0, 0, cache_read_tokens=million), batch=False) == pytest.approx(0.30)
    assert cost_usd(config, Usage(0, 0, 0, million), batch=True) == pytest.approx(0.15)


tokens = st.integers(0, 10**9)


@given(tokens, tokens, tokens, tokens, st.booleans())
def test_an_unknown_price_of_cached_input_errs_on_the_safe_side(
    given_in: int, out: int, written: int, read: int, batch: bool
) -> None:
    known = teacher(SONNET).config("t")
    unknown = replace(known, cache_write_usd_per_mtok=None, cache_read_usd_per_mtok=None)
    usage = Usage(given_in, out, written, read)
    sure, safe = cost_usd(known, usage, batch=batch), cost_usd(unknown, usage, batch=batch)
    assert sure is not None
    assert safe is not None
    assert 0 <= sure <= safe


ROW = {
    "provider": "openai",
    "model": "m",
    "input_usd_per_mtok": 1,
    "output_usd_per_mtok": 2,
    "read_on": date(2026, 1, 1),
    "source": "https://example.org",
}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{**ROW, "inptu": 1}], "line 4: unknown key prices.0.inptu"),
        ([{key: value for key, value in ROW.items() if key != "source"}], "prices.0.source is missing"),
        ([{key: value for key, value in ROW.items() if key != "read_on"}], "prices.0.read_on is missing"),
        ([{**ROW, "source": "hearsay"}], "prices.0.source"),
        ([{**ROW, "output_usd_per_mtok": -1}], "prices.0.output_usd_per_mtok"),
        ([{**ROW, "output_usd_per_mtok": None}], "prices.0.output_usd_per_mtok"),
        ([{**ROW, "provider": "opennai"}], "no host for the provider 'opennai' (did you mean 'openai'?)"),
        ([ROW, {**ROW, "model": "n", "also": ["m"]}], "openai has two rows for 'm'"),
    ],
)
def test_a_row_that_is_wrong_is_one_line(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump({"hosts": {"openai": "api.openai.com"}, "prices": rows}, sort_keys=True))
    with pytest.raises(UsageError) as found:
        load_strict(path, PriceTable)
    assert told in str(found.value)
    assert "prices.yaml" in str(found.value)
    assert "\n" not in str(found.value)
