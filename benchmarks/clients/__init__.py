"""Other people's client programs against a server: which scenarios pass."""
