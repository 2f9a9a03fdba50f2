"""Defaults and checks of configs, parsed once into a CheckedConfig. Imports omegaconf only."""
