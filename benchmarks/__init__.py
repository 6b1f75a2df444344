"""What is fast and what is slow, each beside a named peer in the same run."""
