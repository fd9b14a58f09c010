"""The graph itself: nodes, tensors, subgraphs, types, shapes, constants, and the contract of a pass.

Modules: graph, subgraphs, element_types, graph_pass, runtime, shapes, stored_values, fold_constants,
constant_expression, remove_identities, rounding.
"""
