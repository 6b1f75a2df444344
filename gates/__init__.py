"""How measurements become verdicts."""
