"""Configs: defaults and checks. Imports omegaconf only."""
