"""Every family of models that ComfyUI builds, tiny, and the table of what was seen to work on each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from concept_sliders.tests.support.tiny_families.family import Family
from concept_sliders.tests.support.tiny_families.later import LATER
from concept_sliders.tests.support.tiny_families.transformers import TRANSFORMERS
from concept_sliders.tests.support.tiny_families.unets import UNETS
from concept_sliders.tests.support.tiny_families.videos import VIDEOS
from concept_sliders.tests.support.tiny_families.wan import WANS
from concept_sliders.tests.support.tiny_families.with_images import WITH_IMAGES
from concept_sliders.tests.support.tiny_families.with_sound import WITH_SOUND

FAMILIES: dict[str, Family] = {**UNETS, **TRANSFORMERS, **LATER, **VIDEOS, **WANS, **WITH_IMAGES, **WITH_SOUND}

_HEAD = """# Families of models

What was seen to work on every family of models, in ComfyUI. Each is a tiny model of ComfyUI's own classes with
random weights, in float32 on a CPU. `tests/host/comfy_host/test_families.py` makes the checks, and this table from
what came of them; with `CONCEPT_SLIDERS_WRITE_TABLES=1` it writes the file anew.

- **loads**: a slider of all layers acts, is the bare model to the bit at strength 0, and leaves nothing behind.
- **acts = stock**: the latent is that of the stock LoRA loader's weight patches (within 1e-4), with
  unmerged and with merged sliders.
- **names**: how the layers of a file may begin; each spelling that the stock loader knows acts, sweeps and gates as
  its patches do. After the semicolon: spellings that it does not know, and that are read here as the same layers.
- **sweeps**: entries of one batch at strengths of their own are the runs they would be alone.
- **cond or uncond**: a slider on the positive prompt alone, and on the negative one alone, is a run in which a model
  with the stock loader's patches evaluates that prompt and the bare model the other. ACE-Step 1.5 predicts otherwise
  for both prompts in one batch than for one after the other; there such sliders give what it predicts one by one.
- **gates**: a gate at 0.4 is a run that changes over to the patched model by hand. Early layers are those that
  prepare prompts before sampling begins, such as Anima's adapter: ComfyUI patches them, and there sliders have
  neither strengths per batch entry nor gates, and are not trained.
- **trains**: a textual slider trains in place, and not a bit of the model changes.
- **saves**: a slider comes back from its file acting the same to the bit.
"""
_UNCOVERED = """## What no tiny model stands for

Classes of ComfyUI's models that are not in the table. Sliders act on them by the same rules, but this was not tested.
Where a network is not one of the table's either, entries of a batch whose strengths differ are evaluated one strength
after the other, which is right for every network, and slower.

"""
_COLUMNS = ("loads", "acts", "namings", "sweeps", "cond_uncond", "gates", "trains", "saves")
_TITLES = ("family", "loads", "acts = stock", "names", "sweeps", "cond or uncond", "gates", "trains", "saves")


def table(
    results: Mapping[str, Mapping[str, str | Exception]],
    reasons: Mapping[tuple[str, str], str],
    uncovered: Iterable[str],
) -> str:
    """The page about all families, in Markdown.

    results: by family and check, what the check said or what it raised. reasons: why, by check and family.
    uncovered: ComfyUI's classes of models that no family is of.
    """
    notes = {reason: number for number, reason in enumerate(dict.fromkeys(reasons.values()), start=1)}

    def cell(family: str, check: str) -> str:
        result = results[family][check]
        if not isinstance(result, Exception):
            return result
        reason = reasons.get((check, family))
        return f"no ({notes[reason]})" if reason else "no"

    lines = ["| " + " | ".join(_TITLES) + " |", "| --- " * len(_TITLES) + "|"]
    lines += ["| " + " | ".join((family, *(cell(family, c) for c in _COLUMNS))) + " |" for family in results]
    footnotes = [f"{number}. {reason}" for reason, number in notes.items()]
    classes = _UNCOVERED + ", ".join(f"`{name}`" for name in uncovered)
    return "\n".join((_HEAD, *lines, "", *footnotes, "", classes)).rstrip() + "\n"
