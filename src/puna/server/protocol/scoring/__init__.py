"""Endpoints that read texts and generate nothing: embeddings, labels, likelihoods, decisions and tokens."""
