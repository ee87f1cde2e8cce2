"""From a trained network to verified runtimes."""
