"""`import toolbox` in a script or notebook: the verbs' own plans, carried out in the caller's process."""
