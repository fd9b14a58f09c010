"""The networks, and one configuration that names and builds each of them.

Modules: densenet, mlp, preactivation, residual, network.
"""
