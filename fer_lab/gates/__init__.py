"""Pure functions from a comparison to a verdict."""
