"""The sizes of the comparison with other recurrent DQNs, the same for all sides."""

HIDDEN_SIZE = 128
INPUT_SIZE = 64  # the layer between observation and LSTM; Tianshou's is as wide as its LSTM and cannot be set
BURN_IN = 20
TRACE = 40
BATCH_SIZE = 32
STEPS_PER_UPDATE = 4
BUFFER_SIZE = 20_000
WARM_UP_STEPS = 1000
EPSILON = 0.1
LEARNING_RATE = 5e-4
GAMMA = 0.99
UPDATES_PER_TARGET = 250
