"""``python -m cogumi`` is the ``cogumi`` command."""

from cogumi.cli import main

main()
