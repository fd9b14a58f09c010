"""The part that needs torch: data, noise layers, networks, training, export, and ONNX graphs as torch modules.

The rooms, each building on those before it:

    data            Data sets in the forms that people have them, their preprocessing, and files of torch. No torch but
                    for the last.
    layers          The noise layers, the sites that they stand at, and the layers that all networks share.
    networks        The networks, and one configuration that names and builds each of them.
    training        A training run: its configuration, its data, its steps, its checkpoints, its folder.
    export          From a torch module to an ONNX file that keeps its BatchNorms and marks its noise.
    differentiable  An ONNX graph evaluated in torch: refinement by gradient, and inputs made from the model alone.
    averaging       A module brought to its noise-averaged network in place, without a graph.
"""
