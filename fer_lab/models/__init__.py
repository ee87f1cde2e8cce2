"""Backbone families (one file each) and the deployable graph around a backbone."""
