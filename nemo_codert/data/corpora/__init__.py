"""Recipes that turn a corpus, real or synthetic, into manifests and a tokenizer."""
