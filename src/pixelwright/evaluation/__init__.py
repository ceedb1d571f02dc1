"""Evaluation: features of images, metrics on features, references to compare with, and one pass for all."""
