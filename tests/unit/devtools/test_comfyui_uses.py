"""What the pack calls on ComfyUI, read from syntax trees; and whether a version has it."""

import textwrap

import pytest
from concept_sliders.comfy_host.comfyui_version import OLDEST
from concept_sliders.devtools import host, hosts_page, pins
from concept_sliders.devtools.comfyui_names import Source
from concept_sliders.devtools.comfyui_uses import Call, Use, read


def test_the_oldest_version_is_the_same_to_the_pack_the_registry_and_the_tools():
    assert host.oldest() == OLDEST == pins.RELEASES[0].version


PACK = """
    import comfy.utils
    from comfy.sd import VAE as Codec
    from comfy.model_patcher import ModelPatcher

    class Kept(ModelPatcher):
        vae: "Codec | None"

        def own(self): ...

        def size(self):
            self.own()
            return self.model_size() + self.vae.encode(1)

    def f(patcher: ModelPatcher | None, other):
        clone = patcher.clone()
        clone.model.memory_required([1], *other)
        clone.model.latent_format.unknown
        other.clone()
        getattr(clone, "later", None)
        model_classes("NewModel")
        return comfy.utils.load_torch_file("a", safe_load=True)
"""


def test_names_are_followed_by_imports_annotations_and_known_types():
    found, modules = read([textwrap.dedent(PACK)])
    patcher, model = "comfy.model_patcher.ModelPatcher", "comfy.model_base.BaseModel"
    assert modules == {"comfy.utils", "comfy.sd", "comfy.model_patcher"}
    assert {name for name, _, by_name in found if by_name} == {f"{patcher}.later", "comfy.model_base.NewModel"}
    assert {(name, call) for name, call, _ in found if call} == {
        (f"{patcher}.model_size", Call(0, ())),
        ("comfy.sd.VAE.encode", Call(1, ())),
        (f"{patcher}.clone", Call(0, ())),
        (f"{model}.memory_required", Call(1, (), spread=True)),
        ("comfy.utils.load_torch_file", Call(1, ("safe_load",))),
    }
    assert f"{model}.latent_format" in {name for name, _, _ in found}


@pytest.fixture
def comfyui(tmp_path):
    """A few modules in the ways in which ComfyUI gives names."""
    files = {
        "comfy/utils.py": "def load(path, *, safe=False): ...\ntry:\n    from fast import quick\nfinally:\n    pass",
        "comfy/base.py": "class Base:\n    def __init__(self, a, b=1):\n        self.a = a\n    def run(self, x): 0",
        "comfy/sd.py": "from .base import Base\nclass VAE(Base):\n    SIZE = 1\nAlias = VAE",
        "comfy/__init__.py": "from .sd import *",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Source(tmp_path)


@pytest.mark.parametrize(
    ("name", "call", "fits"),
    [
        ("comfy.utils.load", Call(1, ("safe",)), True),
        ("comfy.utils.load", Call(2, ()), False),
        ("comfy.utils.load", Call(1, ("unsafe",)), False),
        ("comfy.utils.load", Call(0, ()), False),
        ("comfy.utils.load", Call(0, (), spread=True), True),
        ("comfy.utils.quick", None, True),
        ("comfy.utils.gone", None, False),
        ("comfy.gone", None, False),
        ("comfy.sd.VAE", Call(1, ("b",)), True),
        ("comfy.sd.VAE", Call(0, ()), False),
        ("comfy.sd.VAE.run", Call(1, ()), True),
        ("comfy.sd.VAE.run", Call(2, ()), False),
        ("comfy.sd.Alias.SIZE", None, True),
        ("comfy.VAE.a", None, True),
        ("comfy.sd.VAE.c", None, False),
    ],
)
def test_a_version_has_a_name_and_takes_a_call(comfyui, name, call, fits):
    assert comfyui.fits(Use(name, calls={call} - {None})) is fits


def test_since_is_the_first_version_of_those_that_have_it_without_a_gap(comfyui, tmp_path):
    empty = Source(tmp_path / "nothing")
    found = {name: Use(name) for name in ("comfy.sd.VAE", "comfy.gone")}
    versions = hosts_page.since(found, [("1", comfyui), ("2", empty), ("3", comfyui)])
    assert versions == {"comfy.sd.VAE": "3", "comfy.gone": hosts_page.RUN_TIME}
