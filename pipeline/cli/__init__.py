"""The command line: the group, its options, what it prints; one module for each command in `commands`.

Modules: main, options, output, failure, log, completion.
"""
