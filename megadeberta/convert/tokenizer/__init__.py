"""SentencePiece models as tokenizers that Hugging Face's libraries load."""
