"""The adapter as registered operators, and the backends that serve them."""
