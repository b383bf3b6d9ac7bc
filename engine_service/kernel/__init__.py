"""The kernel: one plain Python process, without gRPC, in which user code runs."""
