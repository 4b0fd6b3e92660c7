"""Routes that are not part of an interface for models."""
