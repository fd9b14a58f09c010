"""One module for each command; each parses, calls one function, and prints.

Modules: benchmark, build, compare, demo, doctor, export, inspect, optimize, package, reproduce, train, verify.
"""
