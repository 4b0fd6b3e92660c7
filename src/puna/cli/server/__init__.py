"""Commands for servers: `puna serve`, and the options of its limits."""
