"""BatchNorm as files write it: one node, one module used several times, primitives.

Modules: batch_norm, primitives.
"""
