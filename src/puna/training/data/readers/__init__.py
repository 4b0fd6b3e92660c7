"""Readers: one file per kind of data. `open_rows` (open.py) chooses the reader, by content where that is possible."""
