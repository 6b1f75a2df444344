"""The ledger: what was run, paid, decided and attempted, committed before it is counted."""

from cogumi.ledger.book import Ledger, StepRow
from cogumi.ledger.calls import LedgerCalls

__all__ = ["Ledger", "LedgerCalls", "StepRow"]
