"""Structured output: JSON schemas, regular expressions, grammars and choices, compiled by the library llguidance."""
