"""Members of transformers' tokenizer classes that exist only for compatibility, and Code Llama's tokenizers."""
