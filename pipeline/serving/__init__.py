"""`vsfix package`: a Triton model repository, and KServe.

Modules: kserve, served_model, text_format, triton_config, packaging.
"""
