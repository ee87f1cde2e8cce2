"""Backbones, one file per family, and the deployable graph around them."""
