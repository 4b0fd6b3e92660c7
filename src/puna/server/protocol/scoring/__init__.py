"""Endpoints that read texts without generating: embeddings, labels, likelihoods, decisions and tokens."""
