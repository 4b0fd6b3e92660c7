"""What a request passes before an endpoint: checks, keys, the log, and the queue before the engine."""
