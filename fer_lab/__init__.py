"""fer_lab: train, compare, promote and run facial-expression models whose numbers can be believed."""

__version__ = "0.1.0"
