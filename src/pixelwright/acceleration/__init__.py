"""What makes a plain model fast, applied from outside: an equal callable comes out."""

from pixelwright.acceleration.accelerated import AcceleratedDenoiser, accelerate, drawing, prepare
from pixelwright.acceleration.kernels import kernels

__all__ = ["AcceleratedDenoiser", "accelerate", "drawing", "kernels", "prepare"]
