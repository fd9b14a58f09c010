"""Runtimes that run a model: each opens one and is a `vsfix.graph_passes.ir.runtime.Runner`."""
