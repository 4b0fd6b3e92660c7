"""SentencePiece models: reading and writing the file, encoding, decoding, and conversion to `tokenizers`."""
