"""Text-to-image diffusion that can spell: ByT5 reads, a UNet draws."""

__version__ = "0.1.0"
