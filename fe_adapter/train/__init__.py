"""Training: one recipe, resumable bit for bit."""
