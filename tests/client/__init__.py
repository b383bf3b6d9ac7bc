"""The client against a scripted controller, over real gRPC."""
