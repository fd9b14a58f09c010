"""The command line: the group, its options, what it prints; one module for each command in `commands`.

Modules: build_progress, main, options, output.
"""
