"""A classifier tested on labelled videos."""
