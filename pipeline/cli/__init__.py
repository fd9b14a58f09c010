"""The command line: the group, its options, its tables; one module for each command in `commands`.

Modules: build_progress, build_table, comparison_table, main, options, tables, verification_table.
"""
