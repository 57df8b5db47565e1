"""What this machine has for a run, what it lacks, and how to get it."""
