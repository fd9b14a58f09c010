"""The commands of `vsfix`: one module each, imported when the command is called."""
