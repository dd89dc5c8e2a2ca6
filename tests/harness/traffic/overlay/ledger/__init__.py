"""An application that the scenarios add to a copy of the project: it writes every task and its worker to a file."""
