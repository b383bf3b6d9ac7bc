"""Chaos: real processes on small networks of their own, a seeded schedule of faults, and a judge.

`make chaos MINUTES=30 SEED=7` runs it by hand, `test_chaos.py` for half a minute in the suite.

schedule.py   which faults happen when: a function of the seed
network.py    a network namespace for each machine, links that can be cut, slowed and reset
machines.py   the processes of each machine: controller, hosts, clients
faults.py     carries the faults out and keeps the log of them
jobs.py       what clients have engines do
ledger.py     what engines write down when they run something, and clients when they send and when they hear
worker.py     a client: Python's own
caller.py     a client of another language: plain unary calls, nothing of our library's session
auditor.py    reads answers again when all is over
verdict.py    reads the logs and says what was broken
"""
