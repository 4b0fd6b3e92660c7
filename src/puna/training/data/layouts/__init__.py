"""Layouts of rows: which columns a row has, and how they become a document. `table` has one line per layout."""
