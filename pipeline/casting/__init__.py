"""A model in another precision, judged against itself.

Modules: cast_judge, putting_back, casting, quantization.
"""
