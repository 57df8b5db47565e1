"""Hugging Face folders <-> megadeberta checkpoints."""
