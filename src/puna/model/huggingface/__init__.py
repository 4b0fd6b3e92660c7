"""The interface of transformers' `PreTrainedModel`, for compatibility: nothing here changes what a model computes.

Each module has one class over functions: `loading`, `saving`, `embeddings`, `pruning`, `training`, `information` and
`attention`. `LlamaPreTrainedModel` (`model/pretrained.py`) inherits all of them.
"""
