"""Adapters as folders: written, read, and taken over from ST-Adapter."""
