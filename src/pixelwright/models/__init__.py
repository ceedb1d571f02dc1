"""Backbones, detailers, the denoiser that joins them, and the table of named models."""
