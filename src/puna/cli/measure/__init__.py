"""Commands that measure: speed, the time of each kernel, and perplexity."""
