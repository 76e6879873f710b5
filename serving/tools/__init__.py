"""Tools: how models are told of functions, how they call them, and how calls are read."""
