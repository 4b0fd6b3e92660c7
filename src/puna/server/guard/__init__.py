"""The security checks, the API keys, the access log, and the queue that every request passes before an endpoint."""
