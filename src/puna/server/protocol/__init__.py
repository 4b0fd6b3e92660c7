"""The HTTP fields: tables of the fields of each endpoint, requests as `Generation`s, and updates as responses."""
