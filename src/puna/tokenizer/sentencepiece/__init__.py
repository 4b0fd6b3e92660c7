"""SentencePiece models: reading and writing the file, decoding, and conversion to a pipeline of `tokenizers`."""
