"""Decoding strategies: each is one function that continues a prompt; `table.py` maps a mode to its function."""
