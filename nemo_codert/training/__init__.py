"""Training runs: resuming, checkpoint files, non-finite numbers, checks before a run."""
