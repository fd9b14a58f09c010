"""What the parameters of a repaired network should be, so that it computes what the network with its noise averages to.

divergence        what an output means (class scores, probabilities, values), and how far two of them are apart
samples           a calibration set in an order of its own, whatever order and batches it came in
taps              the shapes of tensors in one run, and some positions of a tensor given out by the runtime
noise_average     F(x) = E_n f(x; n): seeded runs with the noise on
severity          R: how far the deployed network is from F, in units of what one draw of the noise does
activations       the function that follows a scale and a shift, with its derivative
units             the places whose scale and shift are free, and how new ones are written
unit_fit          the scale and shift of one unit, against its targets
matching          match: scale and shift of each unit, layer by layer
layers            how far each unit of a deployed network is from F
stored_statistics what is stored against what the network with its noise shows
"""
