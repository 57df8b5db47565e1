"""Tokenizers of this package as those of the ``tokenizers`` library, with equal ids: ``tokenizer.json``."""
