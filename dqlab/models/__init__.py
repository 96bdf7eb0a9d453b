"""Pipelines, shipped models, training recipes and the data set."""
