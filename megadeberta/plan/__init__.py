"""Which layouts of a recipe fit a cluster, what they cost, and which one to take. Arithmetic; never imports torch."""
