"""What a trained model scores: losses by mask kind, replaced tokens, and perplexities of texts."""
