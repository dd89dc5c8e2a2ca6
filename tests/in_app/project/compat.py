"""A module of the project that has the name of a module of hostctl/in_app."""

OWNER = "project"
