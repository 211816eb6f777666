"""Null-text on models whose weights are paged or cast: no layer's weight lies still between forward and backward."""

from contextlib import nullcontext, suppress

import pytest
import torch
from concept_sliders.inversion import inversion_run, predictions
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.tests.support.inverting import quick_settings
from concept_sliders.tests.support.paged_training import paged
from concept_sliders.tests.support.paging import DynamicOnTheCpu
from concept_sliders.tests.support.tiny import FAMILIES, condition, tiny_model, traces
from concept_sliders.tests.support.typed_models import typed_model

GUIDED = [family for family in FAMILIES if family != "Flux"]
FEW = {"steps": 2, "inner_steps": 4, "learning_rate": 0.05, "refinement": 0}


def fitted(model, family):
    latents = torch.randn(1, FAMILIES[family][2], 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        made = invert(model, latents, condition(family, 2), condition(family, 3), quick_settings(**FEW))
    assert traces(model) == []
    return made


def losses(made):
    return torch.tensor(made.losses)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["once", "gradient checkpointing"])
@pytest.mark.parametrize("family", GUIDED)
def test_paged_weights_give_the_embeddings_of_weights_that_stay(family, checkpointing, monkeypatch):
    if checkpointing:
        _short_of_memory(monkeypatch)
    still, model = fitted(tiny_model(family), family), tiny_model(family)
    buffer = paged(model)
    moving = fitted(model, family)
    assert buffer.fetched > 15
    torch.testing.assert_close(losses(moving), losses(still), rtol=1e-3, atol=0)
    # Adam's first steps go by signs, which rounding may turn where a slope is next to nothing
    change = (moving.embeddings - still.embeddings).norm() / (still.embeddings - condition(family, 3)[0][0]).norm()
    assert float(change) < 0.02


def _short_of_memory(monkeypatch):
    """As after memory has run out: gradient checkpointing is on from the first step on."""
    own_init = predictions.Gradients.__init__

    def short(self, *given):
        own_init(self, *given)
        self.checkpointing = True

    monkeypatch.setattr(predictions.Gradients, "__init__", short)


def test_without_fetching_them_again_they_would_be_others(monkeypatch):
    still, model = fitted(tiny_model("SD15"), "SD15"), tiny_model("SD15")
    paged(model)
    monkeypatch.setattr(predictions, "refetched", nullcontext)
    with suppress(FloatingPointError):  # so wrong that they are no numbers
        assert not torch.allclose(losses(fitted(model, "SD15")), losses(still), rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", GUIDED)
def test_comfyuis_own_paging_patcher(family):
    still, model = fitted(tiny_model(family), family), DynamicOnTheCpu.of(tiny_model(family))
    made = fitted(model, family)
    assert sum(getattr(module, "comfy_cast_weights", False) for module in model.model.modules()) > 15
    torch.testing.assert_close(losses(made), losses(still))
    assert made.weights_hash == still.weights_hash


@pytest.mark.parametrize("family", GUIDED)
def test_weights_in_8_bits_give_the_losses_of_float32(family):
    model, single = typed_model(family, torch.float8_e4m3fn, torch.float32), tiny_model(family)
    for own, source in zip(single.model.parameters(), model.model.parameters(), strict=True):
        own.data = source.data.float()
    cast, exact = losses(fitted(model, family)), losses(fitted(single, family))
    torch.testing.assert_close(cast, exact, rtol=1e-3, atol=0)
    assert (cast[:, 1] < cast[:, 0]).all() and cast[0, 1] < 0.95 * cast[0, 0]


def test_of_weights_that_are_cast_no_copy_is_kept_for_backward(monkeypatch):
    """A model in 8 bits that computes in 32 would be there a second time, four times as large."""
    own_optimise, kept = inversion_run.optimise_embedding, {}
    cast = typed_model("SD15", torch.float8_e4m3fn, torch.float32)
    for name, model in (("plain", tiny_model("SD15")), ("cast", cast)):
        sizes, weights = {}, {p.untyped_storage().data_ptr() for p in model.model.parameters()}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def optimise(predict, *given, pack=pack):
            def once(*asked):
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    return predict(*asked)

            return own_optimise(once, *given[:2], 1, *given[3:])

        monkeypatch.setattr(inversion_run, "optimise_embedding", optimise)
        fitted(model, "SD15")
        kept[name] = sum(size for pointer, size in sizes.items() if pointer not in weights)
    assert kept["cast"] < 1.5 * kept["plain"]
