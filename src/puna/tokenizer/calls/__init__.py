"""A call of a tokenizer: texts, pairs and words, truncation to windows, padding, columns and tensors."""
