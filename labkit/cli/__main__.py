"""`python -m labkit.cli`, which is also what torchrun starts."""

from labkit.cli import main

main()
