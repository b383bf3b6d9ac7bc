"""How fast Enginery is, beside bare gRPC and a peer measured in the same run. `make bench` prints one table."""
