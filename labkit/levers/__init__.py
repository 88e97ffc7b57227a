"""The levers of lesson 13.6, each pulled alone on the same cases: what it fixes, what it breaks, what it costs.

plan says what is pulled, run pulls it, table reads the results back and sets them side by side.
"""
