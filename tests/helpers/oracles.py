"""
The memory cores again, as slow loops over the equations of their papers.

An oracle runs one row of a batch, in float64 and with numpy only. It shares nothing with the package except the numbers in
a core's parameters and state, whose names and layout it states at its top. Symbols are those of the papers.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]

#: Not in the papers: added to |k|^2 |m|^2, and the least usage that a slot counts with; ``addressing`` says why
EPS = 1e-6


class Result(NamedTuple):
    """The results of T steps."""

    outputs: np.ndarray  # [T, D]
    state: dict[str, np.ndarray]  # after the last step, without the batch axis
    weights: dict[str, np.ndarray]  # of the last step, as in ``MemoryCore.memory_weights``, [heads, slots]


# ---------------------------------------------------------------- parts


def layer(parameters: Arrays, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function x -> W x + b of a linear layer."""
    weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias", 0.0)
    return lambda x: weight @ x + bias


def layer_norm(parameters: Arrays, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Ba et al. (2016), section 3."""
    gain, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    return lambda x: gain * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + bias


def below(parameters: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The parameters of a submodule, under their own names."""
    return {name.removeprefix(prefix): array for name, array in parameters.items() if name.startswith(prefix)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log(1 + np.exp(x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def parts(vector: np.ndarray, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """A vector in named pieces, one after the other."""
    pieces, start = {}, 0
    for name, size in sizes.items():
        pieces[name] = vector[start : start + size]
        start += size
    assert start == len(vector)
    return pieces


def window_of(entries: list[np.ndarray], length: int, size: int) -> np.ndarray:
    """The last entries as a state keeps them: the newest last, zeros where there was none."""
    kept = np.zeros((length, size))
    for age, entry in enumerate(reversed(entries[-length:])):
        kept[length - 1 - age] = entry
    return kept


# ---------------------------------------------------------------- gated transformer


def gtrxl(parameters: Arrays, inputs: np.ndarray, state: Arrays, n_heads: int) -> Result:
    """Parisotto et al. (2020), section 3 and figure 1 (right): each layer attends to its own inputs at the last L steps."""
    n_layers, length, size = state["embeddings"].shape
    embed = layer(parameters, "embedding")
    layers = [below(parameters, f"layers.{index}.") for index in range(n_layers)]

    n_past = int(state["valid"].sum())
    entries = [list(past[length - n_past :]) for past in state["embeddings"]]
    outputs = []
    for x in inputs:
        e, weights = embed(x), []
        for own, inputs_of_layer in zip(layers, entries, strict=True):
            inputs_of_layer.append(e)
            e, layer_weights = gtrxl_layer(own, inputs_of_layer[-(length + 1) :], n_heads)
            weights += [window_of(list(head_weights), length + 1, 1).ravel() for head_weights in layer_weights]
        outputs.append(e)
    after = {
        "embeddings": np.stack([window_of(inputs_of_layer, length, size) for inputs_of_layer in entries]),
        "valid": window_of([np.ones(1)] * len(entries[0]), length, 1).ravel(),
    }
    return Result(np.stack(outputs), after, {"attention": np.stack(weights)})


def gtrxl_layer(parameters: Arrays, window: list[np.ndarray], n_heads: int) -> tuple[np.ndarray, list[list[float]]]:
    """
    One layer at one step.

    :param parameters: of the layer
    :param window: its inputs at the last steps and, as the last entry, at the present one
    :param n_heads: number of heads
    :return: its output, and the attention of each head over the window
    """
    norm, feedforward_norm = (layer_norm(parameters, name) for name in ("attention_norm", "feedforward_norm"))
    query, key_value, project = (layer(parameters, name) for name in ("query", "key_value", "out_projection"))
    hidden_layer, output_layer = (layer(parameters, f"feedforward.{index}") for index in (0, 2))
    positions = parameters["relative_positions"]  # R, learned for each head and distance, the most distant first
    v = parameters["position_bias"]  # the bias of the query's layer is the paper's u, and is in v's terms as well
    attention_gate, feedforward_gate = (below(parameters, f"{name}.") for name in ("attention_gate", "feedforward_gate"))

    present = window[-1]
    size = len(present)
    d = size // n_heads
    normalised = [norm(e) for e in window]
    attended, weights = np.zeros(size), []
    for head in range(n_heads):
        own = slice(head * d, (head + 1) * d)
        q = query(normalised[-1])[own]
        scores, values = [], []
        for index, e in enumerate(normalised):
            distance = len(window) - 1 - index
            keys_and_values = key_value(e)
            k = keys_and_values[:size][own]
            r = positions[head, -1 - distance]
            # Dai et al. (2019), section 3.3: terms (a) and (c) by content, terms (b) and (d) by position
            scores.append((q @ k + (q + v[head]) @ r) / np.sqrt(d))
            values.append(keys_and_values[size:][own])
        head_weights = softmax(np.array(scores))
        for weight, value in zip(head_weights, values, strict=True):
            attended[own] += weight * value
        weights.append(list(head_weights))

    # Parisotto et al. (2020), section 3.2: the inputs are normalised, and both outputs pass a ReLU and a gate
    y = gru_gate(attention_gate, present, relu(project(attended)))
    e = output_layer(relu(hidden_layer(feedforward_norm(y))))
    return gru_gate(feedforward_gate, y, relu(e)), weights


def gru_gate(parameters: Arrays, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Parisotto et al. (2020), section 3.2, "Gated-Recurrent-Unit-type gating"."""
    W_r, W_z, W_g = np.split(parameters["w_rzg.weight"], 3)
    U_r, U_z = np.split(parameters["u_rz.weight"], 2)
    U_g, b_g = parameters["u_g.weight"], parameters["bias"]
    r = sigmoid(W_r @ y + U_r @ x)
    z = sigmoid(W_z @ y + U_z @ x - b_g)
    h = np.tanh(W_g @ y + U_g @ (r * x))
    return (1 - z) * x + z * h


# ---------------------------------------------------------------- memory of keys and values


def key_value(parameters: Arrays, inputs: np.ndarray, state: Arrays, context: str = "mqn", n_hops: int = 1) -> Result:
    """
    Oh et al. (2016), section 3, with the hops of Miller et al. (2016), section 3.1.

    Keys have the relative positions of Sukhbaatar et al. (2015), section 4.1, added to them, and scores are divided by the
    root of the key's size, as in Vaswani et al. (2017), eq. (1).
    """
    pair, first_query = layer(parameters, "key_value"), layer(parameters, "query")
    hop_queries = [layer(parameters, f"hop_queries.{hop}") for hop in range(n_hops - 1)]
    positions = parameters["relative_positions"]  # a vector for each distance, the most distant first
    embed, recurrent = "context", "context.lstm"
    n_slots, key_size = state["keys"].shape
    value_size = state["values"].shape[1]

    n_past = int(state["valid"].sum())
    keys, values = list(state["keys"][n_slots - n_past :]), list(state["values"][n_slots - n_past :])
    h, c, o = state["hidden"], state["cell"], state["read"]
    outputs = []
    for x in inputs:
        # "Context": of the present input (MQN), of all inputs (RMQN), or of these and what was retrieved last (FRMQN)
        if context == "mqn":
            current = layer(parameters, embed)(x)
        else:
            h, c = lstm(parameters, recurrent, np.concatenate((x, o)) if context == "frmqn" else x, h, c)
            current = h

        # "Read"; Miller et al.: each hop makes a new query from the last one and the value that it read
        window = keys[-n_slots:], values[-n_slots:], positions, value_size
        q = first_query(current)
        read, p = retrieve(q, *window)
        weights = [p]
        for hop_query in hop_queries:
            q = hop_query(np.concatenate((q, read)))
            read, p = retrieve(q, *window)
            weights.append(p)
        o = read if context == "frmqn" else o
        outputs.append(np.concatenate((current, read)))

        # "Write": the present is stored after the memory was read, so no step finds itself
        new = pair(x)
        keys.append(new[:key_size])
        values.append(new[key_size:])
    after = {
        "keys": window_of(keys, n_slots, key_size),
        "values": window_of(values, n_slots, value_size),
        "valid": window_of([np.ones(1)] * len(keys), n_slots, 1).ravel(),
        "hidden": h,
        "cell": c,
        "read": o,
    }
    return Result(np.stack(outputs), after, {"retrieval": np.stack([window_of(list(p), n_slots, 1).ravel() for p in weights])})


def retrieve(
    q: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray], positions: np.ndarray, value_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Oh et al. (2016), eqs. (3) and (4): the value read and its weights; an empty memory returns 0."""
    read = np.zeros(value_size)
    scores = [q @ (k + positions[index - len(keys)]) / np.sqrt(len(q)) for index, k in enumerate(keys)]
    p = softmax(np.array(scores))
    for weight, value in zip(p, values, strict=True):
        read += weight * value
    return read, p


def lstm(parameters: Arrays, name: str, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An ``nn.LSTM`` of one layer: gates in the order i, f, g, o."""
    W_x, W_h, b_x, b_h = (parameters[f"{name}.{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    i, f, g, o = np.split(W_x @ x + b_x + W_h @ h + b_h, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


# ---------------------------------------------------------------- recurrent cells


def ctrnn(parameters: Arrays, inputs: np.ndarray, state: Arrays, tau: float, dt: float, nonlinearity: str) -> Result:
    """Yang et al. (2019), Methods, without noise: Euler steps, unit by unit."""
    W, U = parameters["cell.weight_hh"], parameters["cell.weight_ih"]
    b = parameters["cell.bias_hh"] + parameters["cell.bias_ih"]
    f = {"tanh": np.tanh, "relu": relu}[nonlinearity]
    r, outputs = state["hidden"], []
    for x in inputs:
        slopes = np.zeros_like(r)
        for i in range(len(r)):
            slopes[i] = (-r[i] + f(W[i] @ r + U[i] @ x + b[i])) / tau
        r = r + dt * slopes
        outputs.append(r)
    return Result(np.stack(outputs), {"hidden": r}, {})


def min_gru(parameters: Arrays, inputs: np.ndarray, state: Arrays) -> Result:
    """Feng et al. (2024), section 3.1, in the order gate, candidate."""
    linear, h, outputs = layer(parameters, "linear"), state["hidden"], []
    for x in inputs:
        gate, candidate = np.split(linear(x), 2)
        z = sigmoid(gate)
        h = (1 - z) * h + z * candidate
        outputs.append(h)
    return Result(np.stack(outputs), {"hidden": h}, {})


# ---------------------------------------------------------------- external memories: what NTM and DNC share


def control(
    parameters: Arrays, kind: str, x: np.ndarray, reads: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The controller, over the input and what was read at the step before: its output, its hidden state and its cell."""
    linear = layer(parameters, "controller.linear")
    if kind == "feedforward":
        return relu(linear(np.concatenate((x, reads.ravel())))), h, c
    i, f, o, g = np.split(linear(np.concatenate((x, reads.ravel(), h))), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, h, c


def by_content(key: np.ndarray, memory: np.ndarray, strength: float, mask: np.ndarray | float = 1.0) -> np.ndarray:
    """Graves et al. (2014), eqs. (5) and (6); the mask is that of Csordás & Schmidhuber (2019), section 3.1."""
    scores = []
    for word in memory:
        k, m = key * mask, word * mask
        scores.append(strength * (k @ m) / np.sqrt((k @ k) * (m @ m) + EPS))
    return softmax(np.array(scores))


# ---------------------------------------------------------------- neural Turing machine


def ntm(parameters: Arrays, inputs: np.ndarray, state: Arrays, controller: str = "lstm", shift_range: int = 1) -> Result:
    """Graves et al. (2014), section 3; the read heads see the memory before this step's write."""
    interface_layer, output_layer = layer(parameters, "interface"), layer(parameters, "output")
    memory, reads = state["memory"].copy(), state["reads"]
    h, c = state["hidden"], state["cell"]
    n_slots, word_size = memory.shape
    n_reads, n_writes = len(state["read_weights"]), len(state["write_weights"])
    n_heads = n_reads + n_writes
    # The interface vector; in each part all read heads come first, then all write heads
    n_shifts = 2 * shift_range + 1
    sizes = dict(keys=n_heads * word_size, add=n_writes * word_size, shifts=n_heads * n_shifts)
    sizes |= dict(strengths=n_heads, exponents=n_heads, gates=n_heads, erase=n_writes * word_size)

    weights = [*state["read_weights"], *state["write_weights"]]
    outputs = []
    for x in inputs:
        controls, h, c = control(parameters, controller, x, reads, h, c)
        interface = parts(interface_layer(controls), sizes)
        keys, shifts = interface["keys"].reshape(n_heads, -1), interface["shifts"].reshape(n_heads, -1)
        for head in range(n_heads):
            # Figure 2: by content, between content and the last location, moved, sharpened
            content = by_content(keys[head], memory, softplus(interface["strengths"][head]))
            g = sigmoid(interface["gates"][head])
            gated = g * content + (1 - g) * weights[head]  # eq. (7)
            s, moved = softmax(shifts[head]), np.zeros(n_slots)
            for i in range(n_slots):  # eq. (8)
                for j in range(-shift_range, shift_range + 1):
                    moved[i] += s[j + shift_range] * gated[(i - j) % n_slots]
            gamma = 1 + softplus(interface["exponents"][head])
            weights[head] = moved**gamma / (moved**gamma).sum()  # eq. (9)
        read_weights, write_weights = weights[:n_reads], weights[n_reads:]

        reads = np.zeros((n_reads, word_size))
        for r, w in enumerate(read_weights):
            for i in range(n_slots):
                reads[r] += w[i] * memory[i]  # eq. (2)
        erase = sigmoid(interface["erase"]).reshape(n_writes, -1)
        add = interface["add"].reshape(n_writes, -1)
        for i in range(n_slots):  # of several heads all erase before any adds
            for w, e in zip(write_weights, erase, strict=True):
                memory[i] = memory[i] * (1 - w[i] * e)  # eq. (3)
            for w, a in zip(write_weights, add, strict=True):
                memory[i] = memory[i] + w[i] * a  # eq. (4)
        outputs.append(output_layer(np.concatenate((controls, reads.ravel()))))
    heads = {"read_weights": np.stack(read_weights), "write_weights": np.stack(write_weights)}
    after = {"hidden": h, "cell": c, "memory": memory, "reads": reads, **heads}
    return Result(np.stack(outputs), after, {"read": heads["read_weights"], "write": heads["write_weights"]})


# ---------------------------------------------------------------- differentiable neural computer


def dnc(
    parameters: Arrays,
    inputs: np.ndarray,
    state: Arrays,
    controller: str = "lstm",
    masking: bool = False,
    deallocation: bool = False,
    link_sharpening: bool = False,
) -> Result:
    """Graves et al. (2016), Methods, with the three changes of Csordás & Schmidhuber (2019), section 3."""
    interface_layer, output_layer = layer(parameters, "access.interface"), layer(parameters, "output")
    now = {name: array.copy() for name, array in state.items()}
    n_slots, word_size = now["memory"].shape
    n_reads = len(now["read_weights"])
    # The interface vector; strengths pass a softplus as in DeepMind's code, where the paper has 1 + softplus
    sizes = dict(erase=word_size, free=n_reads, allocation=1, write=1)
    sizes |= dict(write_mask=word_size, read_masks=n_reads * word_size) if masking else {}
    sizes |= dict(write_strength=1, read_strengths=n_reads)
    sizes |= dict(forward_exponents=n_reads, backward_exponents=n_reads) if link_sharpening else {}
    sizes |= dict(write_vector=word_size, write_key=word_size, read_keys=n_reads * word_size, read_modes=3 * n_reads)

    outputs = []
    for x in inputs:
        controls, h, c = control(parameters, controller, x, now["reads"], now["hidden"], now["cell"])
        interface = parts(interface_layer(controls), sizes)
        f, e, v = sigmoid(interface["free"]), sigmoid(interface["erase"]), interface["write_vector"]
        g_a, g_w = sigmoid(interface["allocation"][0]), sigmoid(interface["write"][0])

        # "Dynamic memory allocation": the usage rises by the last write, and falls where a head freed what it had read
        psi, u = np.ones(n_slots), np.zeros(n_slots)
        for i in range(n_slots):
            for r in range(n_reads):
                psi[i] *= 1 - f[r] * now["read_weights"][r, i]
            last_u, last_w = now["usage"][i], now["write_weights"][i]
            u[i] = (last_u + last_w - last_u * last_w) * psi[i]
        a, product = np.zeros(n_slots), 1.0
        for slot in np.argsort(u, kind="stable"):  # eq. (1)
            used = EPS + (1 - EPS) * u[slot]
            a[slot] = (1 - used) * product
            product *= used

        # "Content-based addressing" of the memory as it was, and the write
        mask = sigmoid(interface["write_mask"]) if masking else 1.0
        content = by_content(interface["write_key"], now["memory"], softplus(interface["write_strength"][0]), mask)
        w = g_w * (g_a * a + (1 - g_a) * content)
        memory = np.zeros((n_slots, word_size))
        for i in range(n_slots):
            kept = psi[i] if deallocation else 1.0  # Csordás & Schmidhuber (2019), section 3.2
            memory[i] = now["memory"][i] * kept * (1 - w[i] * e) + w[i] * v

        # "Temporal memory linkage"
        link = np.zeros((n_slots, n_slots))
        for i in range(n_slots):
            for j in range(n_slots):
                if i != j:
                    link[i, j] = (1 - w[i] - w[j]) * now["link"][i, j] + w[i] * now["precedence"][j]
        precedence = (1 - w.sum()) * now["precedence"] + w

        # Read weights: backward, forward, or by content of the memory that was just written
        read_weights, reads = np.zeros((n_reads, n_slots)), np.zeros((n_reads, word_size))
        for r in range(n_reads):
            forward, backward = link @ now["read_weights"][r], link.T @ now["read_weights"][r]
            if link_sharpening:
                forward = sharpened(forward, 1 + softplus(interface["forward_exponents"][r]))
                backward = sharpened(backward, 1 + softplus(interface["backward_exponents"][r]))
            mask = sigmoid(interface["read_masks"].reshape(n_reads, -1)[r]) if masking else 1.0
            key = interface["read_keys"].reshape(n_reads, -1)[r]
            content = by_content(key, memory, softplus(interface["read_strengths"][r]), mask)
            to_backward, to_forward, to_content = softmax(interface["read_modes"].reshape(n_reads, 3)[r])
            read_weights[r] = to_backward * backward + to_forward * forward + to_content * content
            for i in range(n_slots):
                reads[r] += read_weights[r, i] * memory[i]
        outputs.append(output_layer(np.concatenate((controls, reads.ravel()))))
        now = {
            "hidden": h,
            "cell": c,
            "reads": reads,
            "memory": memory,
            "usage": u,
            "link": link,
            "precedence": precedence,
            "read_weights": read_weights,
            "write_weights": w,
        }
    weights = {"read": read_weights, "write": w[None], "usage": u[None], "link": link}
    return Result(np.stack(outputs), now, weights)


def sharpened(weights: np.ndarray, exponent: float) -> np.ndarray:
    """Csordás & Schmidhuber (2019), section 3.3; unlike there the sum is kept, so links to nothing still read nothing."""
    if weights.sum() == 0:
        return weights
    return weights**exponent / (weights**exponent).sum() * weights.sum()
