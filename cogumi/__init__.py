"""The harness: command line, profiles, ledger, artifact store, runner and model loading."""
