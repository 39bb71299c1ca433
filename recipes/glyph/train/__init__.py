"""The embedded model's own stages: tokenizer, language model, transformer."""
