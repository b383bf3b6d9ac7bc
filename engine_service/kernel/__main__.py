"""`python -m engine_service.kernel SOCKET PAGE`: started by the host, with two inherited file descriptors."""

import sys

from engine_service.kernel.service import main

main(int(sys.argv[1]), int(sys.argv[2]))
