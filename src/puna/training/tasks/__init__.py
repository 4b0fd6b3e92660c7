"""Tasks: what is learned, from which data. `base` is their interface."""
