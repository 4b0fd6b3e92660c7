"""The tests of this folder are not collected where PyTorch is not installed."""

from __future__ import annotations

from tests.helpers.torch_files import HAS_TORCH

collect_ignore_glob = [] if HAS_TORCH else ["test_*.py"]
