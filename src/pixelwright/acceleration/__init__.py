"""What makes a plain model fast, applied from outside: an equal callable comes out."""

from pixelwright.acceleration.accelerated import AcceleratedDenoiser, accelerate

__all__ = ["AcceleratedDenoiser", "accelerate"]
