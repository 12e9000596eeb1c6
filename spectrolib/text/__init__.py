"""Documents, token windows, and what can be said of a token from its text alone."""
