"""
Breaks the package one line at a time and checks that a test notices: ``make mutants``, or ``python tests/mutants.py NAME``.

A mutant that survives is a fault that the tests would let through; a third of those here did, once. ``test_mutants.py``, one
of the default tests, checks that the table still fits the code.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: What a copy needs for its tests to run
COPIED = ("sb3_attn", "tests", "zoo_configs", "pyproject.toml")
#: Exit status of pytest
PASSED, FAILED = 0, 1


class Mutant(NamedTuple):
    """
    A fault.

    :param name: a few words
    :param file: below ``sb3_attn/``
    :param original: text that occurs once in the file
    :param replacement: what to put in its place
    :param tests: which of the tests have to fail, below ``tests/``
    """

    name: str
    file: str
    original: str
    replacement: str
    tests: str


class Verdict(NamedTuple):
    """The outcome of a mutant: "killed", "SURVIVED", or "ERROR" if pytest could not run; and the output of pytest."""

    kind: str
    detail: str
    seconds: float


ORACLES = "memory/test_oracles.py"
BACKWARD = "memory/test_backward.py"
ADDRESSING = "memory/test_addressing.py"
TD = "common/test_td.py"
UPDATE = "recurrent_dqn/test_update.py"
ACTING_TESTS = "recurrent_dqn/test_acting.py"
AVERAGE = "recurrent_dqn/test_average.py"
HEAD_TESTS = "recurrent_dqn/test_heads.py"
SCALE = "recurrent_dqn/test_scale.py"
RETURN_SCALE = "recurrent_dqn/return_scale.py"
DIAGNOSTIC_TESTS = "recurrent_dqn/test_diagnostics.py"
DIAGNOSTICS = "recurrent_dqn/diagnostics.py"
ALGORITHM = "recurrent_dqn/recurrent_dqn.py"
ACTING = "recurrent_dqn/acting.py"
HEADS = "recurrent_dqn/heads.py"
VEC_ENVS = "algorithms/test_vec_envs.py"
MASKS = "algorithms/test_action_masks.py"
FIGURES = "viz/test_figures.py"
MULTI_DISCRETE = "algorithms/test_multi_discrete.py"

MUTANTS = [
    # ------------------------------------------------------------ GTrXL
    Mutant(
        "gtrxl: no norm before attention",
        "memory/gtrxl.py",
        """\
        present = self.attention_norm(inputs)
        pairs = extend(self.key_value(self.attention_norm(past)), self.key_value(present))
""",
        """\
        present = inputs + 0 * self.attention_norm(inputs)
        pairs = extend(self.key_value(past), self.key_value(present))
""",
        ORACLES,
    ),
    Mutant(
        "gtrxl: scores not scaled",
        "memory/gtrxl.py",
        "relative_shift(position_scores)) * self.scale",
        "relative_shift(position_scores))",
        ORACLES,
    ),
    Mutant(
        "gtrxl: second gate bypasses the attention",
        "memory/gtrxl.py",
        "self.feedforward_gate(hidden, ",
        "self.feedforward_gate(inputs, ",
        ORACLES,
    ),
    Mutant(
        "gtrxl: no position bias",
        "memory/gtrxl.py",
        "(query + self.position_bias.unsqueeze(1))",
        "(query + 0 * self.position_bias.unsqueeze(1))",
        ORACLES,
    ),
    Mutant(
        "gtrxl: no relative positions",
        "memory/gtrxl.py",
        "(content_scores + relative_shift(position_scores))",
        "(content_scores + 0 * relative_shift(position_scores))",
        ORACLES,
    ),
    Mutant("window: one step short", "memory/sliding_window.py", "(ages <= length)", "(ages < length)", ORACLES),
    Mutant(
        "window: sees the future", "memory/sliding_window.py", "(ages >= (0 if with_present else 1))", "(ages >= -1)", ORACLES
    ),
    Mutant("window: empty entries count", "memory/sliding_window.py", "F.pad(valid > 0,", "F.pad(valid >= 0,", ORACLES),
    # ------------------------------------------------------------ key-value memory
    Mutant(
        "key-value: a hop ignores the last query",
        "memory/key_value.py",
        "hop_query(th.cat((query, read), dim=-1))",
        "hop_query(th.cat((0 * query, read), dim=-1))",
        ORACLES,
    ),
    Mutant(
        "key-value: frmqn without feedback",
        "memory/key_value.py",
        "self.context(th.cat((step_inputs, read), dim=-1), lstm_state)",
        "self.context(th.cat((step_inputs, 0 * read), dim=-1), lstm_state)",
        ORACLES,
    ),
    Mutant("key-value: scores not scaled", "memory/key_value.py", "scores * self.key_size**-0.5", "scores", ORACLES),
    # ------------------------------------------------------------ NTM and DNC
    Mutant(
        "controller: feed-forward without ReLU",
        "memory/external/controller.py",
        "F.relu(th.addmm(projected, reads, self.recurrent_weight.t()))",
        "th.addmm(projected, reads, self.recurrent_weight.t())",
        ORACLES,
    ),
    Mutant(
        "dnc: link sharpening without 1 +",
        "memory/external/dnc.py",
        'sharpen_links(after, 1 + interface["forward_exponents"]',
        'sharpen_links(after, interface["forward_exponents"]',
        ORACLES,
    ),
    Mutant(
        "dnc: deallocation before and after the write",
        "memory/external/dnc.py",
        "        link = addressing.temporal_link(",
        """\
        memory = memory * retention.unsqueeze(-1) if self.deallocation else memory
        link = addressing.temporal_link(""",
        ORACLES,
    ),
    Mutant(
        "dnc: unstable sort in the backward pass",
        "memory/external/backward.py",
        ".sort(dim=-1, stable=True)",
        ".sort(dim=-1)",
        BACKWARD,
    ),
    Mutant(
        "dnc: gradient of the allocation cancels in float32",
        "memory/external/backward.py",
        "used_more = F.pad((d_weights * saved.sorted_weights)[:, :-1].cumsum(dim=-1), (1, 0))",
        """\
products = d_weights * saved.sorted_weights
    used_more = products.sum(dim=-1, keepdim=True) - products.flip(-1).cumsum(dim=-1).flip(-1)""",
        BACKWARD,
    ),
    Mutant(
        "dnc: most used slot allocated first",
        "memory/external/addressing.py",
        "usage.sort(dim=-1, stable=True)",
        "usage.sort(dim=-1, stable=True, descending=True)",
        ADDRESSING,
    ),
    Mutant(
        "ntm: no sharpening",
        "memory/external/addressing.py",
        "((weights + LOG_EPS).log() * exponents)",
        "((weights + LOG_EPS).log() + 0 * exponents)",
        ADDRESSING,
    ),
    Mutant(
        "ntm: both shifts the same way",
        "memory/external/addressing.py",
        "shares[max_shift - offset], weights.roll(-offset, dims=-1)",
        "shares[max_shift - offset], weights.roll(offset, dims=-1)",
        ADDRESSING,
    ),
    # ------------------------------------------------------------ attention
    Mutant(
        "self-attention block: no norm before attention",
        "attention/modules.py",
        "self.attention(self.attention_norm(tokens), mask, need_weights)",
        "self.attention(tokens + 0 * self.attention_norm(tokens), mask, need_weights)",
        "attention/test_attention.py",
    ),
    # ------------------------------------------------------------ targets, priorities, exploration
    Mutant("td: lambda swapped", "common/td.py", "td_lambda * discounts, 0.0)", "(1 - td_lambda) * discounts, 0.0)", TD),
    Mutant("td: n off by one", "common/td.py", "range(n - 1)", "range(n)", TD),
    Mutant(
        "td: signed priorities", "common/td.py", "th.where(mask, td_error.abs(), 0.0)", "th.where(mask, td_error, 0.0)", TD
    ),
    Mutant(
        "epsilons in reverse",
        "common/exploration.py",
        "np.linspace(0, 1, n_envs)",
        "np.linspace(1, 0, n_envs)",
        "common/test_exploration.py",
    ),
    # ------------------------------------------------------------ replay
    Mutant(
        "replay: truncation as termination",
        "replay/sequence_buffer.py",
        "& ~self.timeouts[positions, env_indices] & mask",
        "& mask",
        "replay/test_sequence_buffer.py",
    ),
    Mutant(
        "replay: the newest observation in place of a final one",
        "replay/observation_store.py",
        "if final is None else final[key]",
        "",
        "replay/test_sequence_buffer.py",
    ),
    Mutant(
        "replay: an episode's tail left out",
        "replay/sequence_buffer.py",
        "starts[(starts == 0) | (starts - period + trace < length)]",
        "starts[starts == 0]",
        "replay/test_sequence_buffer.py",
    ),
    Mutant(
        "replay: stale priorities written",
        "replay/prioritized.py",
        "same_window = self.window_ids[positions, env_indices] == samples.window_ids",
        "same_window = samples.window_ids >= 0",
        "replay/test_prioritized.py",
    ),
    Mutant(
        "replay: the largest priority never falls",
        "common/sum_tree.py",
        "self._levels[0].reshape(-1, RADIX)[blocks].max(axis=1)",
        "np.maximum(self._block_maxima[blocks], self._levels[0].reshape(-1, RADIX)[blocks].max(axis=1))",
        "replay/test_prioritized.py",
    ),
    Mutant(
        "replay: new windows are never less important than 1",
        "replay/prioritized.py",
        "self._tree.largest or 1.0",
        "max(self._tree.largest, 1.0)",
        "replay/test_prioritized.py",
    ),
    # ------------------------------------------------------------ RecurrentDQN
    Mutant(
        "target network without burn-in",
        "recurrent_dqn/recurrent_dqn.py",
        "self.q_net_target.burn_in(batch)",
        "self.q_net_target.initial_state(len(batch.indices))",
        UPDATE,
    ),
    Mutant(
        "target network with the online network's burn-in",
        "recurrent_dqn/recurrent_dqn.py",
        "self.q_net_target.burn_in(batch)",
        "self.q_net.burn_in(batch)",
        UPDATE,
    ),
    Mutant(
        "double Q swapped",
        "recurrent_dqn/recurrent_dqn.py",
        "self._acting_values(batch, values) if self.double_q else target_values",
        "target_values if self.double_q else values",
        UPDATE,
    ),
    Mutant(
        "clipped double Q takes the larger value",
        "common/td.py",
        "keepdim=True) < values.mean",
        "keepdim=True) > values.mean",
        UPDATE,
    ),
    Mutant(
        "clipped double Q takes each quantile by itself",
        "common/td.py",
        "th.where(other.mean(dim=-1, keepdim=True) < values.mean(dim=-1, keepdim=True), other, values)",
        "th.minimum(other, values)",
        UPDATE,
    ),
    Mutant(
        "double Q clipped without being asked to",
        "recurrent_dqn/recurrent_dqn.py",
        "        if self.clipped_double_q:\n            next_values",
        "        if self.double_q:\n            next_values",
        UPDATE,
    ),
    Mutant(
        "traces cut by the target network's values alone",
        "recurrent_dqn/recurrent_dqn.py",
        "            q_values = td.smaller_values(q_values,",
        "            td.smaller_values(q_values,",
        UPDATE,
    ),
    Mutant(
        "double Q chooses by sampled regions",
        "recurrent_dqn/recurrent_dqn.py",
        "        self.q_net.set_training_mode(False)\n",
        "",
        UPDATE,
    ),
    Mutant(
        "double Q takes every network for one that samples",
        "recurrent_dqn/recurrent_dqn.py",
        "        if not self.q_net.samples_in_training:\n            return values\n",
        "",
        UPDATE,
    ),
    Mutant(
        "values in the unit of the outputs",
        HEADS,
        "(self.running_scale if n_components == 1 else self.running_scale / n_components) * outputs",
        "outputs",
        SCALE,
    ),
    Mutant(
        "expected errors in the unit of the rewards",
        HEADS,
        "values / self.running_scale, targets / self.running_scale",
        "values, targets",
        HEAD_TESTS,
    ),
    Mutant("quantile errors in the unit of the rewards", HEADS, " / self.running_scale  # u_ij", "  # u_ij", HEAD_TESTS),
    Mutant("quantile fractions off by a half", HEADS, "+ 0.5) / self.n_values", "+ 1.0) / self.n_values", HEAD_TESTS),
    Mutant("quantiles of the wrong side", HEADS, "errors.detach() < 0", "errors.detach() > 0", HEAD_TESTS),
    Mutant("mean over the estimated quantiles", HEADS, ".mean(dim=-1).sum(dim=-1)", ".mean(dim=-1).mean(dim=-1)", HEAD_TESTS),
    Mutant("returns go on after an episode", RETURN_SCALE, "np.where(episode_starts, 0.0, self.gamma)", "self.gamma", SCALE),
    Mutant("returns without a discount", RETURN_SCALE, "gamma * self._weighted_returns", "self._weighted_returns", SCALE),
    Mutant("weights discounted once instead of squared", RETURN_SCALE, "gamma**2", "gamma", SCALE),
    Mutant("mean of squares for the variance", RETURN_SCALE, " - (self._sum / n_steps) ** 2", "", SCALE),
    Mutant("td: the tolerance the wrong way", "common/td.py", "greedy_values - tolerance", "greedy_values + tolerance", TD),
    Mutant("td: traces cut one step too late", "common/td.py", "th.cat((q_values[1:],", "th.cat((q_values[:-1],", TD),
    Mutant(
        "traces cut by the online network",
        ALGORITHM,
        "components.take(target_values[:-1], batch.actions)",
        "components.take(selector_values[:-1], batch.actions)",
        UPDATE,
    ),
    Mutant("traces never cut", ALGORITHM, "self.trace_tolerance, q_values", "None, q_values", UPDATE),
    Mutant(
        "actors never cut traces",
        "r2d2/trajectory.py",
        "trace_tolerance, values",
        "None, values",
        "r2d2/test_acting_td_errors.py",
    ),
    Mutant("batches of any number of windows", ALGORITHM, "MAX_WINDOWS_PER_BATCH)", "10**6)", SCALE),
    Mutant("batches of eight windows", ALGORITHM, "math.ceil(STEPS_PER_BATCH /", "math.ceil(8 +", SCALE),
    Mutant(
        "the target network keeps its scale",
        ALGORITHM,
        "for net in (self.q_net, self.q_net_target):\n                net.head.running_scale",
        "for net in (self.q_net,):\n                net.head.running_scale",
        SCALE,
    ),
    Mutant(
        "resets by others are not noticed",
        "recurrent_dqn/step_checks.py",
        "now is not None and now is not before",
        "False",
        ACTING_TESTS,
    ),
    Mutant("priorities in the unit of the rewards", ALGORITHM, "td_error / self.q_net.head.running_scale", "td_error", SCALE),
    Mutant(
        "actors' priorities in that unit",
        "r2d2/r2d2.py",
        "trajectory.td_errors / self.return_scale.value",
        "trajectory.td_errors",
        SCALE,
    ),
    Mutant("truncated episodes end", DIAGNOSTICS, "rewards = np.where(timeouts, values, rewards)", "pass", DIAGNOSTIC_TESTS),
    Mutant(
        "the newest value for the first",
        DIAGNOSTICS,
        "(episode_starts, values, self._first",
        "(True, values, self._first",
        DIAGNOSTIC_TESTS,
    ),
    Mutant("the norm of padded windows", DIAGNOSTICS, "core_state, mask[-1])", "core_state, mask[0])", DIAGNOSTIC_TESTS),
    Mutant(
        "the norm after clipping",
        ALGORITHM,
        "core_state, grad_norm)",
        "core_state, grad_norm.clamp(max=self.max_grad_norm))",
        DIAGNOSTIC_TESTS,
    ),
    Mutant(
        "Delta Q in training mode",
        DIAGNOSTICS,
        "q_net.set_training_mode(False)",
        "q_net.set_training_mode(True)",
        DIAGNOSTIC_TESTS,
    ),
    Mutant(
        "Delta Q over the first step's maximum",
        DIAGNOSTICS,
        "-th.inf).amax(dim=0).abs()",
        "-th.inf)[0].abs()",
        DIAGNOSTIC_TESTS,
    ),
    Mutant(
        "Delta Q at the last padded step",
        DIAGNOSTICS,
        "last_steps = batch.mask.sum(dim=0) - 1",
        "last_steps = 0 * batch.mask.sum(dim=0) + len(batch.mask) - 1",
        DIAGNOSTIC_TESTS,
    ),
    Mutant(
        "a past that is overwritten",
        "replay/sequence_buffer.py",
        "(n_past <= np.minimum(n_stored, max_past))",
        "(n_past <= max_past)",
        DIAGNOSTIC_TESTS,
    ),
    Mutant(
        "shared random numbers",
        "replay/sequence_buffer.py",
        "rng.choice(np.flat",
        "np.random.choice(np.flat",
        DIAGNOSTIC_TESTS,
    ),
    Mutant("an average that is never updated", ALGORITHM, "            self.policy.update_average()\n", "", AVERAGE),
    Mutant(
        "exploration by the average",
        ACTING,
        "q_values, next_state = self.q_net(obs, state)",
        "q_values, next_state = self.policy.acting_net(obs, state)",
        AVERAGE,
    ),
    Mutant(
        "a Munchausen bonus of the next action",
        ALGORITHM,
        "expected_values(target_values[:-1]), batch.actions",
        "expected_values(target_values[1:]), batch.actions",
        UPDATE,
    ),
    Mutant("hard next values under Munchausen", "common/td.py", "values - temperature * log_policy)", "values)", TD),
    Mutant("burn-in one length short", "recurrent_dqn/networks.py", "burn_in_lengths >= end", "burn_in_lengths > end", UPDATE),
    Mutant(
        "burn-in with gradient",
        "recurrent_dqn/networks.py",
        "with th.set_grad_enabled(self.burn_in_gradient and th.is_grad_enabled()):",
        "with th.set_grad_enabled(th.is_grad_enabled()):",
        UPDATE,
    ),
    Mutant(
        "state after the step stored",
        ACTING,
        "dict(core_state=state",
        "dict(core_state=next_state",
        ACTING_TESTS,
    ),
    Mutant(
        "memory not reset between episodes",
        ACTING,
        "if self._last_episode_starts.any():",
        "if False:",
        ACTING_TESTS,
    ),
    Mutant(
        "callbacks save before the check for NaN",
        ALGORITHM,
        "[*self._guards(), *callback]",
        "[*callback, *self._guards()]",
        "algorithms/test_non_finite_values.py",
    ),
    Mutant(
        "a loaded replay goes on with the episodes of another run",
        "recurrent_dqn/saving.py",
        "        self._last_obs = None\n",
        "",
        "algorithms/test_saving.py",
    ),
    # ------------------------------------------------------------ extractors
    Mutant(
        "hard attention draws in every update",
        "attention/modules.py",
        "sample=self.training and self.samples_in_training",
        "sample=self.training",
        "extractors/test_attention_extractors.py",
    ),
    Mutant(
        "frames: bounds are compared entry by entry only",
        "extractors/memory.py",
        "(by_entry == by_entry[..., :1]).all() or (by_frame == by_frame[..., :1, :]).all()",
        "(by_entry == by_entry[..., :1]).all()",
        "extractors/test_memory_extractors.py",
    ),
    # ------------------------------------------------------------ commands
    Mutant(
        "commands: the newest run, with or without a model",
        "zoo/run_folders.py",
        """Path(log_path).glob("*/*.zip")""",
        """Path(log_path).glob("*/*")""",
        "zoo/test_cli.py",
    ),
    # ------------------------------------------------------------ pictures
    Mutant(
        "pictures: Q-values of the initial memory",
        "viz/action_scores.py",
        "network(tensors, network.state_or_initial(repeated, n))[0]",
        "network(tensors, network.initial_state(n))[0]",
        "viz/test_action_scores.py",
    ),
    Mutant(
        "pictures: Q-values without their mask",
        "viz/recording.py",
        "None if masks is None else masks[:1]",
        "None",
        "viz/test_action_scores.py",
    ),
    Mutant(
        "pictures: states before their observations",
        "viz/recording.py",
        "[*self.states[1:], self.last_state]",
        "[self.states[1], *self.states[1:]]",
        "viz/test_episode_figures.py",
    ),
    Mutant(
        "show: a module that a run names",
        "zoo/saved_models.py",
        "    check_env_id(env_id, trust)\n",
        "",
        "zoo/test_saved_models.py",
    ),
    # ------------------------------------------------------------ DARQN
    Mutant(
        "darqn: accepts the arguments that it ignores",
        "recurrent_dqn/darqn.py",
        "core=AttentionLSTMCore, encoder_arch=[], skip_connection=False\n",
        "core=AttentionLSTMCore, encoder_arch=[]\n",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: wrong sign",
        "recurrent_dqn/darqn.py",
        "return (advantages * log_probabilities.T).sum()",
        "return -(advantages * log_probabilities.T).sum()",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: a window's own loss in its baseline",
        "recurrent_dqn/darqn.py",
        "(step_losses.sum(dim=1, keepdim=True) - step_losses) / n_others",
        "step_losses.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: padding counts in the baseline",
        "recurrent_dqn/darqn.py",
        "(mask.sum(dim=1, keepdim=True) - 1).clamp(min=1)",
        "len(mask[0]) - 1",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: a baseline on padding",
        "recurrent_dqn/darqn.py",
        "th.where(mask, step_losses - baselines, 0.0)",
        "step_losses - baselines",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: every region answers for the whole window",
        "recurrent_dqn/darqn.py",
        "state[2].cumsum(dim=-1)[:, 1:-1]",
        "state[2].sum(dim=-1, keepdim=True)",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: a region answers for the losses before it",
        "recurrent_dqn/darqn.py",
        "state[2].cumsum(dim=-1)[:, 1:-1]",
        "state[2].flip(-1).cumsum(dim=-1).flip(-1)[:, 1:-1]",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: one step late",
        "recurrent_dqn/darqn.py",
        "state[2].cumsum(dim=-1)[:, 1:-1]",
        "state[2].cumsum(dim=-1)[:, :-2]",
        "recurrent_dqn/test_darqn.py",
    ),
    Mutant(
        "reinforce: left out of the loss",
        ALGORITHM,
        "(loss + self.q_net.core.surrogate_loss(step_losses.detach(), batch.mask, core_state)).backward()",
        "loss.backward()",
        "recurrent_dqn/test_darqn.py",
    ),
    # ------------------------------------------------------------ R2D2
    Mutant(
        "r2d2: state after the step sent",
        "r2d2/actor.py",
        "(field.cpu().numpy()[mask] for field in self._state)",
        "(field.cpu().numpy()[mask] for field in self._next_state)",
        "r2d2/test_actor.py",
    ),
    Mutant(
        "r2d2: every actor has the first one's epsilons",
        "r2d2/actor.py",
        "[index * n_envs : (index + 1) * n_envs]",
        "[:n_envs]",
        "r2d2/test_actor.py",
    ),
    Mutant(
        "r2d2: truncated episodes are worth nothing at their end",
        "r2d2/actor.py",
        "np.where(dones, final_values, ",
        "np.where(dones, 0.0, ",
        "r2d2/test_acting_td_errors.py",
    ),
    Mutant(
        "r2d2: actors share their part of the replay",
        "r2d2/trajectory.py",
        "trajectory.actor * n_envs + np.arange(n_envs)",
        "np.arange(n_envs)",
        "r2d2/test_insertion.py",
    ),
    Mutant(
        "r2d2: target network one update late",
        "r2d2/r2d2.py",
        "if self._n_updates % self.target_update_interval == 0:",
        "if self._n_updates % self.target_update_interval == 1:",
        "r2d2/test_learning.py::test_the_target_network_is_copied_every_so_many_updates",
    ),
    Mutant(
        "r2d2: samples_per_insert ignored",
        "r2d2/r2d2.py",
        "self.samples_per_insert * self.n_windows_inserted",
        "self.n_windows_inserted",
        "r2d2/test_learning.py::test_samples_per_insert_holds",
    ),
    Mutant(
        "r2d2: falling epsilons stay with the learner",
        "r2d2/r2d2.py",
        "None if self.per_env_epsilons else self.exploration_rate",
        "None",
        "r2d2/test_learning.py::test_actors_explore_as_the_schedule_says",
    ),
    Mutant(
        "r2d2: settings win over arguments",
        "r2d2/settings.py",
        '**(settings_arguments(given.get("settings", "paper")) | given)',
        '**(given | settings_arguments(given.get("settings", "paper")))',
        "r2d2/test_arguments.py::test_arguments_take_precedence_over_settings",
    ),
    # ------------------------------------------------------------ time scales, frozen features, images
    Mutant(
        "lstm: what a unit writes does not fall with what it keeps",
        "memory/rnn.py",
        "-forget_biases, 0.0",
        "forget_biases, 0.0",
        "memory/test_rnn.py",
    ),
    Mutant(
        "lstm: forget biases in the first layer only",
        "memory/rnn.py",
        "in self.lstm.all_weights:",
        "in self.lstm.all_weights[:1]:",
        "memory/test_rnn.py",
    ),
    Mutant(
        "mingru: gate and candidate exchanged",
        "memory/min_gru.py",
        "return gates.sigmoid(), candidates",
        "return candidates.sigmoid(), gates",
        ORACLES,
    ),
    Mutant(
        "mingru: long-lived units write as much as others",
        "memory/min_gru.py",
        "self.linear.bias[:hidden_size] = -biases",
        "self.linear.bias[:hidden_size] = 0",
        "memory/test_rnn.py",
    ),
    Mutant(
        "ctrnn: the leak does not depend on the step",
        "memory/ctrnn.py",
        "hidden = th.lerp(hidden, target, self.dt / self.tau)",
        "hidden = th.lerp(hidden, target, 0.2)",
        "memory/test_ctrnn.py",
    ),
    Mutant(
        "rnn: recurrent weights as torch draws them",
        "memory/rnn.py",
        "nn.init.orthogonal_(self.rnn.all_weights[0][1])",
        "pass",
        "memory/test_rnn.py",
    ),
    Mutant(
        "layers: a state of layers is read as one of rows",
        "memory/rnn.py",
        "array.unflatten(-1, (num_layers, -1)).transpose(0, 1).contiguous()",
        "array.reshape(num_layers, len(array), -1)",
        "memory/test_rnn.py",
    ),
    Mutant(
        "impala: no skip connection",
        "extractors/impala.py",
        "return images + self.layers(images)",
        "return self.layers(images)",
        "extractors/test_impala.py",
    ),
    Mutant(
        "frozen: no gradient through the burn-in",
        "recurrent_dqn/networks.py",
        "self.burn_in_gradient = burn_in_gradient",
        "self.burn_in_gradient = False",
        "recurrent_dqn/test_frozen_features.py",
    ),
    Mutant(
        "frozen: the final observation keeps the features of the next episode",
        "extractors/frozen.py",
        'info["terminal_observation"] = map_obs(itemgetter(0), with_features)',
        'info["terminal_observation"] = map_obs(itemgetter(0), self._add_features(obs))',
        "recurrent_dqn/test_frozen_features.py",
    ),
    # ------------------------------------------------------------ files
    Mutant(
        "files: a link is followed",
        "common/files.py",
        "os.O_CREAT | os.O_EXCL | os.O_RDWR",
        "os.O_CREAT | os.O_RDWR",
        "common/test_files.py",
    ),
    Mutant(
        "files: temporaries of living writers are swept",
        "common/files.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "common/test_files.py",
    ),
    Mutant(
        "files: a gradient that is not finite reaches the parameters",
        ALGORITHM,
        'check_finite_update("norm of the gradient", grad_norm.item(), self.num_timesteps, n_updates)',
        "pass",
        "algorithms/test_non_finite_values.py",
    ),
    Mutant(
        "signals: training goes on after one",
        "recurrent_dqn/stopping.py",
        "return not self._stop.is_set()",
        "return True",
        "algorithms/test_save_on_signal.py",
    ),
    Mutant(
        "signals: those after an error are taken for requests",
        "recurrent_dqn/stopping.py",
        " if request.call in calls",
        "",
        "algorithms/test_save_on_signal.py",
    ),
    Mutant(
        "signals: Ctrl-C ends the processes of environments",
        "envs/subproc_vec_env.py",
        "signal.SIG_IGN",
        "signal.SIG_DFL",
        "envs/test_subproc_vec_env.py",
    ),
    Mutant(
        "checkpoints: environments are not reseeded",
        "recurrent_dqn/checkpoints.py",
        """\
        self.env.seed(seed)
        self.action_space.seed(seed)
""",
        """\
        self.action_space.seed(seed)
""",
        "recurrent_dqn/test_checkpoints.py",
    ),
    Mutant(
        "checkpoints: the random actions of resumed episodes begin anew",
        "recurrent_dqn/checkpoints.py",
        'self.action_space.np_random.bit_generator.state = own["action_space"]',
        "pass",
        "recurrent_dqn/test_environment_states.py",
    ),
    Mutant(
        "checkpoints: episodes go on in a time limit of their own",
        "recurrent_dqn/environment_states.py",
        'return ("_elapsed_steps",) if',
        "return () if",
        "recurrent_dqn/test_environment_states.py",
    ),
    Mutant(
        "checkpoints: states are saved that environments do not take",
        "recurrent_dqn/environment_states.py",
        "if fault := _set_states(parts, states):",
        "if fault := None:",
        "recurrent_dqn/test_environment_states.py",
    ),
    Mutant(
        "checkpoints: episodes go on in environments that do not take their states",
        "recurrent_dqn/checkpoints.py",
        "if not are_set:",
        "if False:",
        "recurrent_dqn/test_environment_states.py",
    ),
    Mutant(
        "checkpoints: R2D2's actors keep their parameters",
        "r2d2/actors.py",
        "self._schedule.expire(actor.index)",
        "pass",
        "r2d2/test_checkpoints.py",
    ),
    Mutant(
        "checkpoints: one that is followed by others counts among those to keep",
        "recurrent_dqn/checkpoints.py",
        "return found[:n_done], found[n_done:]",
        "return found, found[n_done:]",
        "recurrent_dqn/test_checkpoints.py::test_a_run_that_goes_on_from_an_earlier_checkpoint_is_not_mixed_with_what_followed_it",
    ),
    Mutant(
        "checkpoints: those of more steps are mixed with new ones",
        "recurrent_dqn/checkpoints.py",
        "others = [path for path in others if not _examine(path)[1]]",
        "others = []",
        "recurrent_dqn/test_checkpoints.py::test_a_run_that_goes_on_from_an_earlier_checkpoint_is_not_mixed_with_what_followed_it",
    ),
    Mutant(
        "ratio: that of the environments that the model was made with",
        ALGORITHM,
        "if self.default_frequency and self.env is not None:",
        "if self.default_frequency and self.train_freq == 4 and self.env is not None:",
        "recurrent_dqn/test_scale.py",
    ),
    Mutant(
        "ratio: R2D2 catches up with another samples_per_insert",
        "r2d2/r2d2.py",
        'if "samples_per_insert" in kwargs:',
        "if False:",
        "r2d2/test_learning.py::test_another_ratio_after_loading_is_that_of_what_comes",
    ),
    Mutant(
        "replay: images are stored in another order of their axes",
        "replay/observation_store.py",
        "if [size for size in array.shape if size != 1] != [size for size in shape if size != 1]:",
        "if array.size != np.prod(shape):",
        "replay/test_sequence_buffer.py::test_observations_of_another_shape_are_refused",
    ),
    Mutant(
        "checkpoints: R2D2's first actor always has the next turn",
        "r2d2/actors.py",
        "self._next = first",
        "self._next = 0",
        "r2d2/test_checkpoints.py::test_each_actor_has_its_turn_however_often_checkpoints_are_written",
    ),
    Mutant(
        "checkpoints: R2D2's episodes go on from the middle of a trajectory",
        "r2d2/r2d2.py",
        "actors.close()  # no",
        "pass  # no",
        "r2d2/test_checkpoints.py::test_no_episode_goes_on_from_the_middle_of_a_trajectory",
    ),
    Mutant(
        "checkpoints: R2D2 without a seed draws one when it is resumed",
        "r2d2/actor_checkpoints.py",
        'self._actors_seed = from_json(episodes["model"])["seed"]',
        "pass",
        "r2d2/test_checkpoints.py::test_a_resumed_run_equals_the_one_that_went_on",
    ),
    Mutant(
        "checkpoints: R2D2's actors keep their random streams",
        "r2d2/actor.py",
        "env_seed, self.rng = self.spec.random_streams(self.index)",
        "env_seed, _ = self.spec.random_streams(self.index)",
        "r2d2/test_checkpoints.py",
    ),
    Mutant(
        "loading: an argument that an earlier zip lacks has today's default",
        "recurrent_dqn/saving.py",
        "if name not in data} | kwargs",
        "if name in data} | kwargs",
        "test_former_versions.py",
    ),
    Mutant(
        "loading: the zip of the other algorithm is accepted",
        "recurrent_dqn/saving.py",
        "if algorithm != _algorithm(cls):",
        "if False:",
        "algorithms/test_saving.py",
    ),
    Mutant(
        "loading: the checksums of a zip are not looked at",
        "recurrent_dqn/safe_loading.py",
        "content = io.BytesIO(archive.read(name))",
        "content = io.BytesIO()",
        "algorithms/test_saving.py",
    ),
    Mutant(
        "loading: classes may be changed",
        "recurrent_dqn/safe_loading.py",
        "isinstance(instance, type | FunctionType | BuiltinFunctionType)",
        "False",
        "algorithms/test_hostile_files.py",
    ),
    Mutant(
        "loading: names with dots are found",
        "recurrent_dqn/safe_loading.py",
        'raise UnsafePickleError(f"{module}.{name}")',
        'return functools.reduce(getattr, name.split("."), importlib.import_module(module))',
        "algorithms/test_hostile_files.py",
    ),
    Mutant(
        "loading: settings may name any class",
        "recurrent_dqn/safe_loading.py",
        "decoded(item, functools.partial(find_allowed, trusted=trusted))",
        "decoded(item, lambda module, name: getattr(importlib.import_module(module), name))",
        "algorithms/test_hostile_files.py",
    ),
    Mutant(
        "loading: a pickle may name an environment",
        "recurrent_dqn/safe_loading.py",
        'isinstance((data | objects).get("env"), str)',
        'isinstance(data.get("env"), str)',
        "algorithms/test_hostile_files.py",
    ),
    Mutant(
        "loading: settings are written but not read",
        "recurrent_dqn/safe_loading.py",
        "return data | read_settings(archive, data)",
        "return data",
        "algorithms/test_plain_settings.py",
    ),
    Mutant(
        "loading: headers of zips are believed",
        "recurrent_dqn/safe_loading.py",
        "member.compress_type == zipfile.ZIP_DEFLATED and not _has_true_size(archive, member)",
        "False",
        "algorithms/test_hostile_files.py",
    ),
    Mutant(
        "run folders: videos are written through links",
        "zoo/run_folders.py",
        '(folder, *folder.glob("*"))), None)',
        "()), None)",
        "zoo/test_run_folders.py",
    ),
    Mutant(
        "downloads that may fill the disk",
        "zoo/hub.py",
        "            check_archive(file, filename)",
        "            pass",
        "zoo/test_hub.py",
    ),
    Mutant(
        "private files are pushed through links",
        "zoo/hub.py",
        "            check_own_file(path, self.folder)",
        "            pass",
        "zoo/test_hub.py",
    ),
    Mutant(
        "checkpoints: a manifest names any file",
        "recurrent_dqn/checkpoints.py",
        "if name not in members or _sha256(path / name)",
        "if _sha256(path / name)",
        "recurrent_dqn/test_checkpoints.py",
    ),
    Mutant(
        "a card with the seed of the evaluation as that of training",
        "zoo/hub.py",
        'load_settings(run.settings / "args.yml", trust).get("seed")',
        "args.seed",
        "zoo/test_hub.py",
    ),
    Mutant(
        "run folders: normalize is evaluated",
        "zoo/run_folders.py",
        '= _literal(settings["normalize"])',
        '= eval(settings["normalize"])',
        "zoo/test_run_folders.py",
    ),
    Mutant(
        "run folders: any wrapper is called",
        "zoo/run_folders.py",
        "raise UnsafePickleError(name)",
        "pass",
        "zoo/test_run_folders.py",
    ),
    # ------------------------------------------------------------ environments that misbehave
    Mutant(
        "steps: the number of rewards is not checked",
        "recurrent_dqn/step_checks.py",
        '("rewards", np.shape(rewards))',
        '("rewards", rows)',
        VEC_ENVS,
    ),
    Mutant(
        "steps: a step without its final observation is stored",
        ACTING,
        "stored = ~missing_final_observations(timeouts, infos, self.use_masking)",
        "missing_final_observations(timeouts, infos, self.use_masking)",
        VEC_ENVS,
    ),
    Mutant(
        "steps: an actor sends a step without its final observation",
        "r2d2/actor.py",
        "trajectory.valid[t] = succeeded & ~trajectory.unknown_finals[t]",
        "trajectory.valid[t] = succeeded",
        VEC_ENVS,
    ),
    Mutant(
        "replay: whole episodes as long as the ring",
        "replay/sequence_buffer.py",
        "max(self.buffer_size // 2, 1)",
        "self.buffer_size",
        "replay/test_sequence_buffer.py",
    ),
    Mutant(
        "replay: the states are not counted as memory",
        "replay/sequence_buffer.py",
        "if is_first:  # only",
        "if False:  # only",
        "replay/test_sequence_buffer.py",
    ),
    Mutant(
        "subproc: an environment's exception is an answer",
        "envs/subproc_vec_env.py",
        "if isinstance(answer, _Failure):",
        "if False:",
        "envs/test_subproc_vec_env.py",
    ),
    Mutant(
        "subproc: a process that hangs is not killed",
        "envs/subproc_vec_env.py",
        """\
                self.process.kill()
                raise TimeoutError""",
        """\
                raise TimeoutError""",
        "envs/test_subproc_vec_env.py",
    ),
    Mutant(
        "r2d2: a second learn goes on after an error",
        "r2d2/r2d2.py",
        "previous, self._previous = next(iter(self._running_actors()), None), None",
        "previous = next(iter(self._running_actors()), None)",
        "r2d2/test_checkpoints.py::test_no_episode_goes_on_from_the_middle_of_a_trajectory",
    ),
    Mutant(
        "r2d2: a second learn begins with an empty memory",
        "r2d2/actor.py",
        "if previous is not None:",
        "if False:",
        "algorithms/test_learning.py",
    ),
    # ------------------------------------------------------------ action masks
    Mutant(
        "masks: the next action may be invalid",
        ALGORITHM,
        "selector_values, target_values = components.mask(selector_values, masks), components.mask(target_values, masks)",
        "target_values = components.mask(target_values, masks)",
        MASKS,
    ),
    Mutant(
        "masks: Munchausen values invalid actions",
        ALGORITHM,
        "selector_values, target_values = components.mask(selector_values, masks), components.mask(target_values, masks)",
        "selector_values = components.mask(selector_values, masks)",
        MASKS,
    ),
    Mutant(
        "masks: random actions may be invalid",
        ACTING,
        "explore, self.action_space, self._action_masks)",
        "explore, self.action_space)",
        MASKS,
    ),
    Mutant(
        "masks: those of the next episode after a truncation",
        "recurrent_dqn/masking.py",
        "np.asarray(infos[k].get(ACTION_MASKS, masks[k]))",
        "masks[k]",
        MASKS,
    ),
    Mutant(
        "masks: those of the step before", ACTING, "with_masks(next_obs, next_masks)", "with_masks(next_obs, masks)", MASKS
    ),
    Mutant(
        "masks: actors take invalid actions at random",
        "r2d2/actor.py",
        "components.mask(numbers, th.from_numpy(self._action_masks))",
        "numbers",
        MASKS,
    ),
    Mutant(
        "actors: actions of another type than the space's",
        "r2d2/actor.py",
        "actions.astype(self.env.action_space.dtype, copy=False)",
        "actions",
        "algorithms/test_multi_discrete.py",
    ),
    Mutant(
        "masks: rows without a valid action become NaN",
        "common/action_masks.py",
        "return action_masks | np.repeat(~has_valid_choice(action_masks, nvec), nvec, axis=-1)",
        "return action_masks",
        MASKS,
    ),
    Mutant(
        "masks: minus infinity in soft values",
        "common/td.py",
        "th.where(policy > 0, policy * (values - temperature * log_policy), 0.0)",
        "(policy * (values - temperature * log_policy))",
        MASKS,
    ),
    # ------------------------------------------------------------ MultiDiscrete actions
    Mutant(
        "multi_discrete: advantages less the mean of all components",
        HEADS,
        "part - part.mean(dim=-1, keepdim=True) for part",
        "part - outputs[..., 1:].mean(dim=-1, keepdim=True) for part",
        MULTI_DISCRETE,
    ),
    Mutant(
        "multi_discrete: bonuses clipped in each component only",
        "recurrent_dqn/components.py",
        ".clamp(min=td.MIN_BONUS)",
        "",
        MULTI_DISCRETE,
    ),
    Mutant(
        "multi_discrete: one component may have no valid choice",
        "common/action_masks.py",
        "is_valid.all()",
        "is_valid.any(axis=1).all()",
        MULTI_DISCRETE,
    ),
    # ------------------------------------------------------------ pictures
    Mutant(
        "pictures: a scale of ratios that shrinks to noise",
        "viz/projection.py",
        "largest = max(largest, LEAST_RATIO)",
        "largest = max(largest, 1.0 + TINY)",
        "viz/test_projection.py",
    ),
    Mutant(
        "pictures: even attention over the image's own tokens",
        "viz/figures.py",
        "weights=recorded.even[steps, None]",
        "weights=np.full_like(recorded.weights[:1, :1], 1 / (part.stop - part.start))",
        FIGURES,
    ),
    Mutant(
        "pictures: text in a page that can end its script",
        "viz/page.py",
        '.replace("<", "\\\\u003c")',
        "",
        "viz/test_page.py",
    ),
]


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """
    The source of a file with its fault.

    :param mutant: the fault
    :param root: the repository
    :return: the file's new text
    :raises ValueError: if the original does not occur exactly once
    """
    path = root / "sb3_attn" / mutant.file
    source = path.read_text(encoding="utf-8") if path.exists() else ""
    if (n := source.count(mutant.original)) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.original!r} occurs {n} times in sb3_attn/{mutant.file}; "
            "bring the table in tests/mutants.py up to date."
        )
    return source.replace(mutant.original, mutant.replacement)


def run_tests(tests: Iterable[str], mutant: Mutant | None = None, root: Path = ROOT) -> tuple[int, str]:
    """
    Run tests on a copy of the package.

    :param tests: which, below ``tests/``
    :param mutant: the fault to put in; ``None`` leaves the copy as it is
    :param root: the repository
    :return: pytest's exit status and output
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        copy = Path(directory)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(root / name, copy / name)
        if mutant is not None:
            (copy / "sb3_attn" / mutant.file).write_text(mutated(mutant, root), encoding="utf-8")
        # Both the working directory and PYTHONPATH go before an editable install
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
        environment = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def judge(mutant: Mutant, root: Path = ROOT) -> Verdict:
    """
    Run a mutant's tests.

    :param mutant: the fault
    :param root: the repository
    :return: whether they noticed; tests that cannot be collected have noticed nothing
    """
    start = time.monotonic()
    status, output = run_tests([mutant.tests], mutant, root)
    seconds = time.monotonic() - start
    if status == FAILED:
        first = re.search(r"^FAILED tests/(\S+)", output, re.MULTILINE)
        return Verdict("killed", f"by {first[1]}" if first else "", seconds)
    return Verdict("SURVIVED" if status == PASSED else "ERROR", output.strip(), seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that the tests notice faults in the package.")
    parser.add_argument("names", nargs="*", help="mutants to run, by any part of their names (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once (default: 1)")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or any(name in mutant.name for name in arguments.names)]
    if not chosen:
        parser.error(f"no mutant is called {arguments.names}; there are {[mutant.name for mutant in MUTANTS]}")
    for mutant in chosen:
        mutated(mutant)

    print(f"{len(chosen)} mutants. First the tests without any ...", flush=True)
    status, output = run_tests(sorted({mutant.tests for mutant in chosen}))
    if status != PASSED:
        print(output, "The tests fail without a mutant, so they would kill every one of them; fix them first.", sep="\n")
        return 1

    verdicts = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, verdict in zip(chosen, pool.map(judge, chosen), strict=True):
            verdicts.append(verdict)
            print(f"{verdict.kind:<8} {verdict.seconds:4.0f} s  {mutant.name}  {verdict.detail}", flush=True)
    n_killed = sum(verdict.kind == "killed" for verdict in verdicts)
    print(f"{n_killed} of {len(chosen)} mutants were killed.")
    return 0 if n_killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
