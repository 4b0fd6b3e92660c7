"""The tests of training are not collected where PyTorch is not installed; those of `data/` do not need it."""

from __future__ import annotations

from tests.helpers.torch_files import HAS_TORCH

collect_ignore_glob = [] if HAS_TORCH else ["test_*.py"]
