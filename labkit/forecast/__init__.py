"""What the lessons will take: the work of each is counted, its costs are measured here, and both make minutes.

units and work count, machine, learning and answering measure, probe holds what was measured, predict multiplies, cards
brings published peaks and prices, keep and compare write to the pack. A forecast is read back after the run.
"""
