"""What is measured: suites, tasks, references, backends and the sandbox."""
