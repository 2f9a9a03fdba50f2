"""Transcripts of trained models, word errors and their intervals, streaming clients, learning curves."""
