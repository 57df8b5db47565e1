"""Disentangled attention: the torch reference is the definition of correct; a CPU path and Triton kernels equal it."""
