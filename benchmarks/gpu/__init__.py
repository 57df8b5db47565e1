"""The parts of gpu_day.py: what is measured, the process that measures it, and the note that compares it with goals."""
