"""Clients that people use, each against a running server; a test is skipped where its package is not installed."""
