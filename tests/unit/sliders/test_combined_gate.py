"""Several gates as the one that a file can note."""

from itertools import product

import pytest
from concept_sliders.sliders.gate import Gate, combined_gate

GATES = (Gate(), Gate(0.2), Gate(0.0, 0.7), Gate(0.5, 0.9), Gate(0.2, 1.0, 0.3), Gate(0.1, 0.9, 0.4), Gate(0.8))


@pytest.mark.parametrize("gates", [*product(GATES, repeat=2), *product(GATES, repeat=3)])
def test_one_gate_is_the_product_of_several_or_there_is_none(gates):
    one = combined_gate(gates)
    percents = [i / 200 for i in range(201)]
    factors = [_product(gates, percent) for percent in percents]
    if one is not None:
        assert [one.factor(percent) for percent in percents] == factors
    elif sum(bool(gate.ramp) for gate in gates) == 0:
        assert not any(factors), "windows without ramps meet in a window"


def _product(gates, percent):
    factor = 1.0
    for gate in gates:
        factor *= gate.factor(percent)
    return factor


def test_no_gates_are_the_open_one():
    assert combined_gate(()) == combined_gate((Gate(), Gate())) == Gate()
    assert combined_gate((Gate(0.2, 1.0, 0.3), Gate(0.1))) == Gate(0.2, 1.0, 0.3)
    assert combined_gate((Gate(0.2, 1.0, 0.3), Gate(0.3))) is None
