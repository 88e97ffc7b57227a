"""A tuned model on a small machine: converted, compared with its source, checked, and registered for Foundry Local."""
