"""Checks and defaults of configs, parsed once into a CheckedConfig. Imports omegaconf only."""
