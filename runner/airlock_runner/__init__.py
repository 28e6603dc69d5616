"""Stage 2, host side: boots an image from the store and connects a project, a terminal and a command to it."""
