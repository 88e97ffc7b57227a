"""What the other rooms found, for people: tables in the terminal and HTML files that need no network.

The words come from the rooms that found it; this room adds none of its own.
"""
