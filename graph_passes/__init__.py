"""What is done to a graph: find the noise, measure and repair the statistics, fold, clean. No framework, no runtime.

The rooms, each building on those before it:

    ir               The graph itself: nodes, tensors, subgraphs, types, shapes, constants, and the contract of a pass.
    io               Model files: read with every check, their weights wherever they are, written whole or not at all.
    batch_norm       BatchNorm in any form that a file has it in: one node, one module used several times, primitives.
    noise            Noise: its kinds, how a file marks it, how it is drawn and inserted, and which BatchNorm it
                     reaches.
    statistics       A calibration set and what it shows: moments, how sure they are, and the evidence that they carry.
    training_export  Files in training form become deployable: noise written as arithmetic, BatchNorms that use their
                     batch.
    folding          BatchNorm into the layers around it, in float64, with one rounding.
    measurement      Runs of a graph over a calibration set, stage by stage within a memory limit, and what is read
                     from them.
    cleaning         What an export leaves behind and deployment does not need, and the order of all passes.
    noise_average    F, the network averaged over its noise: how it is sampled, and R, how far a deployed network is
                     from it.
    estimators       What BatchNorms and layers should store: match, exact, paired, the closed forms.
    noise_inference  Lost noise, inferred BatchNorm by BatchNorm from the statistics that the training left behind.
    precision        Graphs in float16, bfloat16 and eight bits: the cast, its constants, and the values that a type
                     can't hold.

At the root: errors, progress (how far a long computation is, told to whoever listens).
"""
