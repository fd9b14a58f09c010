"""Removal of export leftovers that deployment does not need, and the order of all passes.

Modules: control_flow, split_sequences, simplify_shapes, deployment.
"""
