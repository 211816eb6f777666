"""Every kind of change on every family: one layer of each type that ComfyUI patches."""

import comfy.sd
import pytest
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import Subject
from concept_sliders.tests.support.layer_type_files import OTHERS, PRODUCTS, files_of
from concept_sliders.tests.support.tiny import difference
from safetensors.torch import save_file


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("kinds"))


def check(subject: Subject, tensors, modes) -> float:
    """One evaluation against the stock loader; how far that is from the bare model.

    At strength 1, since of an OFT ComfyUI takes the strength twice.
    """
    path = subject.folder / "kinds.safetensors"
    save_file(tensors, path)
    slider = load_slider(path)
    stock, _ = comfy.sd.load_lora_for_models(subject.model, None, dict(tensors), 1.0, 0.0)
    expected = subject.sampled(stock, steps=1)
    for mode in modes:
        assert difference(subject.acting(Stack.of(slider), mode, steps=1), expected) < 1e-4, (mode, sorted(tensors))
    return difference(expected, subject.sampled(subject.model, steps=1))


@pytest.mark.filterwarnings("ignore")
def test_every_kind_on_linear_layers_and_convolutions(subject):
    files = files_of(subject, PRODUCTS)
    assert len({key.rpartition(".")[2] for file in files for key in file}) >= 12  # all of the linear kinds' parts
    assert all(check(subject, file, ("unmerged", "merged")) > 1e-5 for file in files)
    subject.assert_untouched()


def test_norms_and_embeddings(subject):
    files = files_of(subject, OTHERS)
    if not files:
        pytest.skip("its norms have no weights, and it has no embeddings")
    # what a last layer's norm gives to the prompt's tokens, say, nobody reads
    assert max(check(subject, file, ("unmerged", "merged")) for file in files) > 1e-5
