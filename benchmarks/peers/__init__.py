"""The engines that are compared with puna: their settings, their models, and a worker process for each."""
