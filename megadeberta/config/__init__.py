"""Typed, strict, torch-free run configuration."""
