"""The recipe and the loop."""
