"""Training and fine-tuning on one machine.

A training method chooses the parameters that train, a task the loss and the batches. `batch` has the values that all
parts exchange.
"""
