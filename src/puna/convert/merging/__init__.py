"""`puna.merge`: writes a model with the changes of an adapter in its weights."""

from puna.convert.merging.run import Merged, merge

__all__ = ["Merged", "merge"]
