"""Training of tokenizers on text files: the kinds of Llama 2 and Llama 3, and single characters."""
