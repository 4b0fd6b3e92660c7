"""Files on disk: written atomically, small JSON files read with clear errors, names of the parts of a split file."""

from puna.files.atomic_file import atomic_write, folder_path, free_bytes, make_folder, storage_errors
from puna.files.json_file import JSON_LIMIT, json_bytes, parse_json, read_json, write_json
from puna.files.part_names import PartName, group_parts, name_from_path, parse_part_name
from puna.files.reading import has_file, path_argument, read_file, reading_errors

__all__ = [
    "JSON_LIMIT", "PartName", "atomic_write", "folder_path", "free_bytes", "group_parts", "has_file", "json_bytes",
    "make_folder", "name_from_path", "parse_json", "parse_part_name", "path_argument", "read_file", "read_json",
    "reading_errors", "storage_errors", "write_json",
]  # fmt: skip
