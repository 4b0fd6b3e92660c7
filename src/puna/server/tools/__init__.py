"""Tools: the format in which a model calls functions, the grammar of such answers, and the parser of their text."""
