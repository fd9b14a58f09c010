"""What an export leaves behind and deployment does not need, and the order of all passes.

Modules: control_flow, split_sequences, simplify_shapes, deployment.
"""
