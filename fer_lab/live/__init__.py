"""Sources, detectors, tracks, pipeline, window and page of the demo."""
