"""Settings of generation in Hugging Face's file format: fields, defaults, checks, and the strategy they select."""
