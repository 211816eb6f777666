"""The average that a run ends with, against its closed form."""

import pytest
import torch
from concept_sliders.training.average import PowerAverage
from torch import nn


@pytest.mark.parametrize("gamma", [0.0, 4.0])
def test_the_first_steps_of_a_run_make_up_a_power_of_their_share(gamma):
    steps = 12
    parameter = nn.Parameter(torch.full((steps,), 7.0))  # what it begins with does not count
    average = PowerAverage([parameter], gamma)
    for step in range(1, steps + 1):
        with torch.no_grad():
            parameter.copy_(torch.eye(steps)[step - 1])
        average.add(step)
    shares = torch.arange(1.0, steps + 1) / steps
    torch.testing.assert_close(average.tensors[0].cumsum(0), shares ** (gamma + 1))


def test_it_is_put_in_the_parameters_place():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(3, 1))]
    average = PowerAverage(parameters, 0.0)
    for step, value in enumerate((1.0, 2.0), start=1):
        for parameter in parameters:
            nn.init.constant_(parameter, value)
        average.add(step)
    average.put()
    assert all(torch.equal(parameter, torch.full_like(parameter, 1.5)) for parameter in parameters)
    assert all(parameter.requires_grad for parameter in parameters)
