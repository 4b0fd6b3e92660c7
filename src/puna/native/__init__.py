"""The native library: found, loaded, and asked about this machine. The only room that knows a pointer."""

from puna.native.library import Machine, load_library, machine

__all__ = ["Machine", "load_library", "machine"]
