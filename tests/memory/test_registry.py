"""Cores by name."""

import pytest
import torch as th

import sb3_attn.memory
from sb3_attn.memory import CORES, GRUCore, GTrXLCore, LSTMCore, get_core_class, make_core


def test_every_core_is_exported():
    for core_class in CORES.values():
        assert getattr(sb3_attn.memory, core_class.__name__) is core_class
        assert core_class.__name__ in sb3_attn.memory.__all__


def test_make_core_takes_names_classes_and_arguments():
    class OwnCore(LSTMCore):
        pass

    assert type(make_core("gru", 3)) is GRUCore
    core = make_core(OwnCore, 3, dict(hidden_size=7))
    assert type(core) is OwnCore and (core.input_size, core.output_size) == (3, 7)


@pytest.mark.parametrize("core", ["lstn", ""])
def test_make_core_names_the_choices(core):
    with pytest.raises(ValueError, match=r"is unknown; choose one of \['ctrnn', 'dnc', "):
        make_core(core, 3)


@pytest.mark.parametrize("core", [th.nn.LSTM, LSTMCore(3), None, 7])
def test_make_core_refuses_what_is_not_a_core_class(core):
    with pytest.raises(ValueError, match="not a subclass of MemoryCore"):
        make_core(core, 3)


@pytest.mark.parametrize(
    ("name", "core_class"), [("LSTM", LSTMCore), ("transformer", GTrXLCore), ("gated_transformer", GTrXLCore)]
)
def test_other_names_of_a_core_find_the_same_class(name, core_class):
    assert get_core_class(name) is core_class and type(make_core(name, 3)) is core_class


def test_make_core_names_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'hiden_size': 3.* do not fit LSTMCore"):
        make_core("lstm", 3, dict(hiden_size=3))


def test_make_core_refuses_a_state_that_is_no_named_tuple():
    class TensorState(LSTMCore):
        def initial_state(self, batch_size):
            return th.zeros(batch_size, 3)

    with pytest.raises(ValueError, match=r"TensorState\.initial_state\(\) returns a Tensor; give it a NamedTuple of tensors"):
        make_core(TensorState, 3)
