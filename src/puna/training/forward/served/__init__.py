"""The forward pass of the native runtime, with gradients: log-probabilities of training equal those of serving."""
