"""The paper's claims as experiments: grids of training runs with seeds, each run made once, and their tables.

what is run   trial (one run and what is measured of it), experiments (the grids), trial_store (what is kept)
where         local_trials, ray_trials
what is said  summary (mean and deviation, the table), shift_figure, reproducing (the command in one call)
in small      demo (the whole chain on real images that come with scikit-learn)
"""
