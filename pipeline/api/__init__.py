"""What the commands do, in one call each.

Modules: demo, optimization.
"""
