"""`generate()` on the native runtime: the forward passes of a call without gradients on the CPU.

The weights are those of the module, packed once for each state of the module. Only the forward pass differs from
PyTorch's: the strategies, processors and criteria are the same.
"""
