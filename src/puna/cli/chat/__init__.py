"""`puna chat`: a conversation in the terminal, or with another program through pipes."""
