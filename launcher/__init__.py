"""Starts and supervises training processes. Never imports torch."""
