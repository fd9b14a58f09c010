"""`vsfix build`: an engine, what proves it, and the sidecar that belongs to it.

Modules: build_config, engine_sidecar, precision_proof, timing_cache, building.
"""
