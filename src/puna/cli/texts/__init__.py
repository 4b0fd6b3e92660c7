"""Commands that read texts without answering them: `puna tokenize`, `puna embed` and `puna classify`."""
