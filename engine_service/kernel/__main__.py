"""`python -m engine_service.kernel SOCKET PAGE PIPE`: started by the host, with inherited file descriptors."""

import sys

from engine_service.kernel.service import main

main(*map(int, sys.argv[1:4]))
