"""Parts that exist only for compatibility with transformers and the libraries that use it."""
