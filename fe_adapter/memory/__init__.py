"""The memory of a training step: estimated, measured, planned, and made less."""
