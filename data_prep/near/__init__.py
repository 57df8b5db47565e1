"""Finding documents that are almost equal: MinHash sketches, bands of them that agree, and the groups these make."""
