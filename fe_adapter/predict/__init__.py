"""What a classifier says about videos."""
