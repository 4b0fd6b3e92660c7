"""`puna serve`: the HTTP interfaces of OpenAI and Anthropic. Only `protocol/` knows the fields of requests."""
