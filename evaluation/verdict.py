"""What a calibration says of a slider in plain words: works, partly or fails, why, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from .calibration import Response, Side

WORKS, PARTLY, FAILS = "works", "partly", "fails"
WEAK = 0.5  # of the standard deviation of images without the slider: what it moves in all, at least
ONE_SIDED = 1 / 3  # of the other side's reach
ENTANGLED = 0.5  # of the effect: what something else may move
COHERENT = 0.2  # of the length of the images' changes: what is common to them, at least
MINUS_HINT = (
    "This side can only take away what images have: try prompts that show more of it. Train with both ends named, or "
    "a second slider with more and less exchanged."
)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a slider, and what to do about it."""

    what: str
    todo: str


@dataclass(frozen=True)
class Verdict:
    """grade: works, partly or fails. findings: why it is not better."""

    grade: str
    findings: tuple[Finding, ...]


def verdict_of(response: Response, plus: Side, minus: Side) -> Verdict:
    """Judge a slider by what both of its sides do within their useful range."""
    weak, partial = _weak(response, plus, minus), []
    if weak is None:
        partial = [found for found in (_one_sided(plus, minus), _entangled(response, plus, minus)) if found]
    findings = [weak, *partial, _turned_round(response)]
    grade = FAILS if weak else PARTLY if partial else WORKS
    return Verdict(grade, tuple(found for found in findings if found))


def _weak(response: Response, plus: Side, minus: Side) -> Finding | None:
    low, high = response.strengths[0], response.strengths[-1]
    if not plus.end and not minus.end:
        return Finding(
            f"It does nothing beyond chance at strengths {low:g} to {high:g}, by {response.measured_by}.",
            "See on Apply Sliders whether its layers are found in this model. Take more seeds, prompts that leave "
            "room for it, and a larger limit; or train it for longer, or with a larger eta.",
        )
    moved = plus.reach + minus.reach
    if moved < WEAK * response.spread:
        return Finding(
            f"It is too weak: from end to end it moves {response.measured_by} by {moved:.3g}, and images without it "
            f"differ by {response.spread:.3g} among themselves.",
            "Train it for longer, or with a larger eta; or let its gate start earlier.",
        )
    return None


def _one_sided(plus: Side, minus: Side) -> Finding | None:
    weaker, stronger = sorted((plus, minus), key=lambda side: side.reach)
    if weaker.reach >= ONE_SIDED * stronger.reach:
        return None
    names = {1: "plus", -1: "minus"}
    part = f"reaches {weaker.reach / stronger.reach:.0%} of what the other does" if weaker.end else "does nothing"
    return Finding(f"It is one-sided: its {names[weaker.sign]} side {part}.", MINUS_HINT)


def _entangled(response: Response, plus: Side, minus: Side) -> Finding | None:
    ends = [(side.sign, response.at(side.end)) for side in (plus, minus) if side.end]
    moved = plus.reach + minus.reach
    others = {name: sum(sign * changes[at] for sign, at in ends) for name, changes in response.others.items()}
    name = max(others, key=lambda each: abs(others[each]), default="")
    if name and abs(others[name]) > ENTANGLED * moved:
        return Finding(
            f"It is entangled: from end to end it moves {name} by {others[name]:+.2f}, and {response.measured_by} by "
            f"{moved:.2f}.",
            f"Name {name} among the phrases to preserve, and train again; or let the gate start later.",
        )
    common = min((response.coherence[at] for _, at in ends), default=1.0) if response.coherence else 1.0
    if common < COHERENT:
        return Finding(
            f"It is entangled: of what it changes, {common:.0%} is common to the images, and the rest is not.",
            "Add phrases to preserve, and train again; take a lower rank; or let the gate start later.",
        )
    return None


def _turned_round(response: Response) -> Finding | None:
    if not response.is_turned_round:
        return None
    return Finding(
        "It is turned round: more strength leads towards the text of less.",
        "The labels of its ends are exchanged. To exchange its sides instead, save it at strength -1.",
    )
