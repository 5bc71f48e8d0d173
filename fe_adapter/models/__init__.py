"""Adapters in a frozen image transformer, and the classifier around it."""
