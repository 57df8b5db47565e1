"""Disentangled attention: the torch reference is the definition of correct."""
