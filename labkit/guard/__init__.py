"""A money limit around a command: it ends at the budget or at the stop time, and a proof says that it did.

limits says how much and until when, meter what has been used, processes ends a command with all that it started, watch
is the supervisor that outlives its terminal, start is what a terminal sees of it.
"""
