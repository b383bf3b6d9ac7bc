"""A process that does what the audit hook forbids; see test_never_unpickles.py."""

import pickle
from decimal import Decimal

print(pickle.loads(pickle.dumps(Decimal(1))))
