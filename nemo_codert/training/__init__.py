"""What keeps a training alive and honest: resuming, checkpoint files, non-finite numbers."""
