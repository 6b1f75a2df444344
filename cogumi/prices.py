"""What models cost: a dated table with sources, and the price that holds for one teacher.

A price that nobody states is None everywhere, never 0 and never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cogumi.errors import nearest
from cogumi.strict_yaml import load_strict

if TYPE_CHECKING:
    from cogumi.profile import Teacher

TABLE = Path(__file__).parent / "prices.yaml"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class PriceRow(BaseModel):
    """One model at one provider; prices in US dollars for a million tokens, without batch discount."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    provider: str
    model: str
    also: tuple[str, ...] = ()
    """Other names of the same model at the same price."""
    input_usd_per_mtok: float = Field(ge=0)
    output_usd_per_mtok: float = Field(ge=0)
    cache_write_usd_per_mtok: float | None = Field(default=None, ge=0)
    """Input that is written to a cache of five minutes."""
    cache_write_1h_usd_per_mtok: float | None = Field(default=None, ge=0)
    cache_read_usd_per_mtok: float | None = Field(default=None, ge=0)
    cache_minimum_tokens: int | None = Field(default=None, ge=1)
    """A shorter prefix is not cached, and billed as any other input."""
    batch_discount: float | None = Field(default=None, ge=0, le=1)
    """Share that a batch saves; None where no source says so."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    requests_per_day: float | None = Field(default=None, gt=0)
    """What the provider allows one account at this price, over all its models together."""
    read_on: date
    source: str = Field(pattern=r"^https://\S+$")
    retired_on: date | None = None
    """Since when requests fail; the price stays, for runs of before."""
    successor: str | None = None
    note: str = ""


class PriceTable(BaseModel):
    """The table: which host belongs to which provider, and the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    hosts: dict[str, str]
    """Provider to host name."""
    prices: tuple[PriceRow, ...]

    @model_validator(mode="after")
    def _rows_hold(self) -> PriceTable:
        seen: set[tuple[str, str]] = set()
        for row in self.prices:
            if row.provider not in self.hosts:
                raise ValueError(
                    f"{row.model}: no host for the provider {row.provider!r}"
                    f"{nearest(row.provider, sorted(self.hosts))}"
                )
            for name in (row.model, *row.also):
                if (row.provider, name) in seen:
                    raise ValueError(f"{row.provider} has two rows for {name!r}")
                seen.add((row.provider, name))
        return self

    def provider(self, api: str, base_url: str | None) -> str | None:
        """Return whose prices hold at an address, None for one that the table does not know."""
        if base_url is None:
            return api if api in self.hosts else None
        host = urlsplit(base_url).hostname
        return next((name for name, known in self.hosts.items() if known == host), None)

    def row(self, api: str, base_url: str | None, model: str) -> PriceRow | None:
        """Return the row of a model at an address, or None."""
        provider = self.provider(api, base_url)
        rows = (row for row in self.prices if row.provider == provider)
        return next((row for row in rows if model in (row.model, *row.also)), None)


@dataclass(frozen=True, slots=True)
class TeacherPrice:
    """What one teacher's tokens cost, in US dollars for a million; None is unknown."""

    input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None
    cache_write_usd_per_mtok: float | None
    cache_read_usd_per_mtok: float | None
    batch_discount: float
    """0 where nobody states one: a sum then errs on the safe side of a spending limit."""
    source: str
    row: PriceRow | None = None
    """The table's row of this model, also where the profile states other prices."""

    @property
    def known(self) -> bool:
        """Tell whether input and output both have a price."""
        return self.input_usd_per_mtok is not None and self.output_usd_per_mtok is not None


@cache
def price_table() -> PriceTable:
    """Return the table that comes with the program; raises ``UsageError`` naming line and mend."""
    return load_strict(TABLE, PriceTable)


def price_of(teacher: Teacher) -> TeacherPrice:
    """Return a teacher's price: the profile's own, else 0 for a model that runs here, else the table's.

    The local teacher (``base_url: local``) plays a paid model and has no price but the profile's.
    """
    row = price_table().row(teacher.api, teacher.base_url, teacher.model)
    given = (teacher.input_usd_per_mtok, teacher.output_usd_per_mtok)
    if given != (None, None):
        discount = teacher.batch_discount
        if discount is None:
            discount = row.batch_discount if row else None
        return TeacherPrice(
            *given,
            teacher.cache_write_usd_per_mtok,
            teacher.cache_read_usd_per_mtok,
            discount or 0.0,
            f"profile: {teacher.price_source}" if teacher.price_source else "profile",
            row,
        )
    if runs_here(teacher):
        return TeacherPrice(0.0, 0.0, 0.0, 0.0, 0.0, "runs on this machine: nothing is paid")
    if row is None:
        return TeacherPrice(None, None, None, None, teacher.batch_discount or 0.0, "unknown")
    discount = row.batch_discount if teacher.batch_discount is None else teacher.batch_discount
    return TeacherPrice(
        row.input_usd_per_mtok,
        row.output_usd_per_mtok,
        row.cache_write_usd_per_mtok,
        row.cache_read_usd_per_mtok,
        discount or 0.0,
        f"{row.source}, read {row.read_on}",
        row,
    )


def runs_here(teacher: Teacher) -> bool:
    """Tell whether a teacher is a server of ours or one on loopback, which nobody bills."""
    if teacher.gguf is not None:
        return True
    return urlsplit(teacher.base_url or "").hostname in _LOOPBACK
