"""The page of the demo: a small local server and one static page, no build step, nothing from other sites."""
