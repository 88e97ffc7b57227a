"""Ways to move a failing case without changing the task: the later lessons add their levers to this room."""
