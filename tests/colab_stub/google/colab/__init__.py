"""Stands for Colab's own package in tests: Drive is a folder, a download is a line in a file."""
