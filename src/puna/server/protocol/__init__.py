"""The HTTP interfaces: tables of each endpoint's fields, and the translation of requests, updates and responses."""
