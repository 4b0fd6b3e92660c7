"""`puna eval`: one file per command."""
