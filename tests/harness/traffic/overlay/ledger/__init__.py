"""An application that the scenarios add to a copy of the project: what is done, by whom, is written to a file."""
