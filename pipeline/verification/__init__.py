"""`vsfix verify`: a model against a reference, on any two backends.

Modules: model_description, shared_inputs, tappable, verification, verification_files.
"""
