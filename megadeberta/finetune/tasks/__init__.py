"""The tasks: readers of published sets and of one's own tables, and the table of all of them. Never torch."""
