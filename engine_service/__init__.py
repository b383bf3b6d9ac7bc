"""The engine host and its kernels."""
