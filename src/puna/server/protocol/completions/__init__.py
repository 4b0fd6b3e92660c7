"""POST /v1/completions: OpenAI's older API, which continues texts."""
