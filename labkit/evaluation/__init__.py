"""Fixed cases, small named checks, and a failure table by risk: never one average."""
