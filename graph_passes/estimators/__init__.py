"""Estimates of the parameters that BatchNorms and layers should store: match, exact, paired, the closed forms.

Modules: activations, second_moment, linear_noise, analytic, exact, units, unit_fit, refinement_cost, layers, matching,
paired, repair_statistics.
"""
