"""Serving: one chat model behind an OpenAI-compatible API whose contract is enforced, and the way to stop it again.

contract says what may be asked and what is answered, app enforces it, runtimes starts servers, engines is the table of
those that are not ours, smoke proves that one answers, shutdown proves that one is gone, running and ports know what
serves here.
"""
