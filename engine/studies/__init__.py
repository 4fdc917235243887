"""Studies: a recipe, its plan of commands, and their execution."""
