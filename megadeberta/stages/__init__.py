"""What comes after a run: a cool-down, a longer context, an average; each is a recipe that ordinary training runs."""
