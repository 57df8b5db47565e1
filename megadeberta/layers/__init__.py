"""What the layers of a recipe are, hold, cost, keep and send: one catalogue for all readers. Never imports torch."""
