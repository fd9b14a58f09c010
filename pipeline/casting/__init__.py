"""A model in another precision, judged against itself.

Modules: casting, quantization.
"""
