"""The machines of client, controller and host, back to back over a network that breaks as Hypothesis says.

wire.py        a stream whose two ends learn of its end at different times
parties.py     a client, a controller and a host, made of the parts that the programs are made of
"""
