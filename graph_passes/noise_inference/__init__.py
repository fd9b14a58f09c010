"""Lost noise, found from the statistics that it left behind: each BatchNorm tells of the noise in front of it.

places          the part of the graph that a BatchNorm is the first to see, and where noise may have been in it
parts           runs parts of a graph; what they read was left in the cache by those before
telling         what a BatchNorm tells: its stored variances against those that noise at each place makes
plan            what a walk tries, and what it takes for granted
trial           a region with a factor on each of its places
walk            runs the graph BatchNorm by BatchNorm, with the noise found so far on
agreement       what the BatchNorms say together: which kinds of places, and one ratio where all agree
claims          one number where places of one kind agree, with its interval and what it leaves
residuals       what is left of each BatchNorm, with all noise that is known on
verdict         what was found, and whether it may be believed
inference       the search, from a graph to the verdict
"""
