"""Weights that a run starts from, or that are evaluated or exported: where they are and whether they fit."""
