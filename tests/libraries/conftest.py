"""Fixtures of the tests with libraries, which are not collected where PyTorch is not installed."""

from __future__ import annotations

from tests.helpers.torch_files import HAS_TORCH

if HAS_TORCH:
    from tests.libraries.models import folder, offline, tokenizer  # noqa: F401

collect_ignore_glob = [] if HAS_TORCH else ["test_*.py"]
