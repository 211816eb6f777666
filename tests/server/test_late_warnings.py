"""What comes out about sliders while a model is sampled is told to the node that has applied them."""

import shutil

from concept_sliders.devtools.host import ROOT
from concept_sliders.devtools.workflow import add, named
from concept_sliders.tests.server.listening import listening

SLIDER = ROOT / "pocket" / "sliders" / "pocket_age.safetensors"
SAID = (
    "Sliders act unmerged although they are to be merged: "
    "weight hooks rewrite the model's weights between evaluations."
)


def test_sliders_that_are_not_merged_as_asked_are_told_of_once_a_run(server, example):
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    shutil.copy(SLIDER, loras / "hooked.safetensors")
    prompt = example("use_sliders")
    (load,), (apply,), (sampler,) = (named(prompt, name) for name in ("Load Slider", "Apply Sliders", "KSampler"))
    prompt[apply]["inputs"] |= {"sliders": [load, 0], "mode": "merged"}
    hooks = add(prompt, "CreateHookLoraModelOnly", lora_name="hooked.safetensors", strength_model=0.5)
    given = {"cond_NEW": prompt[sampler]["inputs"]["positive"], "strength": 1.0, "set_cond_area": "default"}
    positive = add(prompt, "ConditioningSetProperties", **given, hooks=[hooks, 0])
    prompt[sampler]["inputs"]["positive"] = [positive, 0]
    with listening(server, "warned") as heard:
        server.wait(server.post(prompt, "warned"))
        prompt[sampler]["inputs"]["seed"] += 1  # Apply Sliders does not run again
        server.wait(server.post(prompt, "warned"))
    assert heard.warnings == [(apply, SAID)] * 2
