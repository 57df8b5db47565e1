"""Checkpoints that are whole or invisible: manifest, commit, verify, resume."""
