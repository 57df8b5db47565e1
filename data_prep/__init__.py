"""Raw text -> SentencePiece vocabulary -> token files. Finished before training starts; never imports torch."""
