"""Prefixes on the disk: files of pages, the cache that reads and writes them, and the fingerprint of a model."""

from puna.engine.disk.cache import DiskCache
from puna.engine.disk.fingerprint import DEFAULT_DISK_BYTES, model_fingerprint, open_disk_cache

__all__ = ["DEFAULT_DISK_BYTES", "DiskCache", "model_fingerprint", "open_disk_cache"]
