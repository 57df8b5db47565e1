"""Raw text -> SentencePiece vocabulary -> token shards. Finished before training starts; never imports torch."""
