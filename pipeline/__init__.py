"""The actions of a user: inspect, optimize, build, verify, benchmark, package, and the pages that report it.

The rooms, each building on those before it:

    host          This machine and its terminal: what it is, what is printed, what may be written, what is installed.
    data          What a model is fed with.
    comparison    Two models on the same samples: tensors, decisions, accuracy, and what difference counts. No file is
                  read here.
    inspection    What is known of a model before anything is changed: its BatchNorms, its noise, R, and which fault it
                  has.
    tensorrt      TensorRT and TensorRT-RTX without a runner: the library, its log, parsed networks, engines, CUDA.
    casting       A model in another precision, judged against itself.
    building      `vsfix build`: an engine, what proves it, and the sidecar that belongs to it.
    backends      One module for each runner, what they share, and which of them work here.
    repair        The repair: which method, what it finds, what is written, and the report of it.
    serving       `vsfix package`: a Triton model repository, and KServe.
    verification  `vsfix verify`: a model against a reference, on any two backends.
    benchmark     `vsfix benchmark`: models, backends and precisions on one labelled set, their times, and two runs
                  compared.
    report        The parts of every report: its sections as plain data, numbers as text, figures.
    pages         The HTML pages: tables, answers in words, templates.
    terminal      Results as a terminal shows them.
    reproduction  `vsfix reproduce`: the paper's claims as experiments, here or on a Ray cluster. `vsfix demo` too.
    api           What `import vsfix` gives: a function for each command, and its result. Never imported as
                  vsfix.pipeline.api, which would be a second copy of it.
    cli           The command line: the group, its options; one module for each command in `commands`.
"""
