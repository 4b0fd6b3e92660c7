"""The fast forward pass of training on a CPU: one autograd function per layer, with a hand-written backward pass."""
