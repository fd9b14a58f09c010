"""This machine and its terminal: what it is, what is printed, what may be written, what is installed.

Modules: output_file, terminal_text, table_text, console, environment, progress, quantizer.
"""
