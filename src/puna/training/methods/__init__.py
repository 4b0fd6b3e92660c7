"""Training methods: which parameters train, how they change the model, and how they are saved.

`table.METHODS` lists the methods, `options` their options, and `base` has `Trainable`, the result of attaching a method
to a model.
"""
