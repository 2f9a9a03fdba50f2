"""Untrusted and half-written files: archives and checkpoints opened as data, atomic writing, full disks."""
