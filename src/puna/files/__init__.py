"""Files on disk: files and folders written atomically, and small JSON files read with clear errors."""

from puna.files.atomic_file import atomic_write, folder_path, free_bytes, make_folder, storage_errors
from puna.files.json_file import JSON_LIMIT, json_bytes, read_json, write_json

__all__ = [
    "JSON_LIMIT", "atomic_write", "folder_path", "free_bytes", "json_bytes", "make_folder", "read_json",
    "storage_errors", "write_json",
]  # fmt: skip
