"""The state of an engine into checkpoints and back, whatever layout wrote it."""
