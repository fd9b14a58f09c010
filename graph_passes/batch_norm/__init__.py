"""BatchNorm in any form that a file has it in: one node, one module used several times, primitives.

Modules: batch_norm, primitives.
"""
