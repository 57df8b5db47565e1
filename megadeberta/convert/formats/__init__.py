"""Tensor names and configurations of the model families that weights are exchanged with."""
