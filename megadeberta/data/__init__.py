"""Token shards, sample order, masking and the batch loader."""
