"""The commands `puna train ...`."""
