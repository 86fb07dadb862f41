"""What is simulated for each claim: worlds in which it is false, and one in which it is true."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from calibration import chained, curves, cuts, frozen, grids, recovered, styles, truncated
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.measure.chains import compare

__all__ = ["SCENARIOS", "Scenario"]

Tables = tuple[pd.DataFrame, dict[str, pd.DataFrame] | None]


@dataclass(frozen=True)
class Scenario:
    """One world with known truth.

    Attributes:
        claim: Which rule is asked.
        name: What the world is like.
        true: Whether the claim is; then "not supported" is an error, else "supported" is.
        make: Seed -> table and controls, n and clustering as in a run of profile quick.
        not_met: Why a goal is not met, where it is not; the page says it.
    """

    claim: str
    name: str
    true: bool
    make: Callable[[int], Tables]
    not_met: str = ""

    @property
    def wanted(self) -> str:
        """Which verdicts are wanted how often; ``measure.faults`` reads it."""
        if not self.true:
            return "supported at most 5%"
        power = "supported at least 90%, " if self.name.startswith("power_at") else ""
        return f"{power}not supported at most 5%"


def _at(claim: str) -> dict[str, Any]:
    """The effect that the claim's design is meant to detect."""
    return claim_entry(claim)["power_at"]


def _c0(processes: Any, reads: Any, **options: Any):
    return lambda seed: frozen.frozen_tables(processes, reads, seed=seed, **options)


def _c1(shape: curves.Shape, control: curves.Shape = curves.SHAPES["drift"], noise: float = 1.0):
    def make(seed: int) -> Tables:
        other = curves.curves_table(control, seed=[seed, 1])
        return curves.curves_table(shape, seed=[seed, 0], noise=noise), {"untrained": other}

    return make


def _c2(shapes: Any, control: str = "both settle", **given: Any):
    def make(seed: int) -> Tables:
        options = {"shuffled": False, "placed": False}
        other = curves.text_table(control, seed=seed + 10**6, **options)
        return curves.text_table(shapes, seed=seed, **given), {"untrained": other}

    return make


def _c3(**options: Any):
    return lambda seed: (grids.grid_table(seed=seed, **options), None)


def _c4(single: Any, text: Any, **options: Any):
    hazards = {"mcq": single, "vqa": single, "caption": text}
    return lambda seed: truncated.sweep_tables(hazards, n=96, seed=seed, **options)


def _c5(chain: Any = None, answer: Any = None, **options: Any):
    return lambda seed: (
        compare(chained.chains_table(chain, answer, n=96, seed=seed, **options)),
        None,
    )


def _c6(caption: float, chart: float, **options: Any):
    shares = {"caption": caption, "chart": chart}
    return lambda seed: (recovered.recovery_table(shares, seed=seed, alike=0.0, **options), None)


def _c7(direct: Callable, long: Callable, **options: Any):
    return lambda seed: styles.styles_tables({"direct": direct, "long": long}, seed=seed, **options)


def _left_over(margins: float) -> curves.Shape:
    """An early change, and later one of exactly the margin: the edge of "settled"."""
    first, then = curves.early_change(4), curves.late_change(margins)
    zero = curves.late_change(0)

    def both(i: int) -> curves.Curve:
        return lambda z: first[i](z) + then[i](z) - zero[i](z)

    return both(0), both(1), both(2)


def _c7_power(exponent: float, **options: Any):
    return _c7(lambda z: z**exponent, lambda z: z ** (1 / exponent), **options)


def _c8(mcq: int = 3, vqa: int = 4, **options: Any):
    return lambda seed: cuts.cut_tables({"mcq": mcq, "vqa": vqa}, seed=seed, **options)


ALL, EARLY, LATE = curves.SHAPES, curves.early_change, curves.late_change
_HALF = chained.needs(0.5)


def _moves(margins: float) -> tuple[curves.Curve, curves.Curve, curves.Curve]:
    """Text, in its own and in the image's places, moves more by so many margins."""
    return (curves.slows, curves.moves(margins), curves.moves(margins))


_P = {claim: _at(claim) for claim in ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8")}
_C3_TRUE = {"image": grids.always(_P["C3"]["index"], _P["C3"]["loss"])}


def _worlds(claim: str, but: set[str]) -> tuple[Scenario, ...]:
    """The worlds of C1 or C2 in ``curves``, without those that stand below under other names."""

    def make(options: Callable[[int], dict[str, Any]]) -> Callable[[int], Tables]:
        def tables(seed: int) -> Tables:
            if claim == "C1":
                other = curves.curves_table(ALL["drift"], seed=[seed, 1])
                return curves.curves_table(**options(seed)), {"untrained": other}
            bare = {"shuffled": False, "placed": False}
            other = curves.text_table("both settle", seed=seed + 10**6, **bare)
            return curves.text_table(**options(seed)), {"untrained": other}

        return tables

    worlds = {"C1": curves.worlds_of_c1, "C2": curves.worlds_of_c2}[claim]()
    return tuple(
        Scenario(claim, name, bool(true), make(options))
        for name, (true, options) in worlds.items()
        if name not in but
    )


SCENARIOS = (
    Scenario("C0", "processed as long as read", False, _c0(0.5, 0.5)),
    Scenario(
        "C0",
        "processed as long as read, two questions to a picture",
        False,
        _c0(0.5, 0.5, n=48, questions=2, spread=0.8),
    ),
    Scenario("C0", "processed as long as read, in the first third", False, _c0(0.25, 0.25)),
    Scenario("C0", "processed until half", False, _c0(0.5, 0.9)),
    Scenario("C0", "processed for two layers more than a third", False, _c0(0.45, 0.9)),
    Scenario(
        "C0",
        "one task is processed until half",
        False,
        _c0({"mcq": 0.0, "vqa": 0.0, "chart": 0.0, "caption": 0.5}, 0.9),
    ),
    Scenario(
        "C0",
        "freezing loses just more than a tenth until half",
        False,
        _c0(0.5, 0.9, frozen_height=0.11),
    ),
    *(
        Scenario("C0", f"{mode}: does as well", False, _c0(0.0, 0.6, harmless=(mode,)))
        for mode in frozen.FROZEN_OTHER
    ),
    Scenario("C0", "processed until a sixth", True, _c0(0.12, 0.6)),
    Scenario("C0", "freezing loses three in a hundred", True, _c0(0.5, 0.9, frozen_height=0.03)),
    Scenario(
        "C0",
        "need not be processed, two questions to a picture",
        True,
        _c0(0.0, 0.6, n=48, questions=2, spread=0.8),
    ),
    Scenario(
        "C0",
        "power_at: need not be processed",
        True,
        _c0(_P["C0"]["frozen"], _P["C0"]["removed"], guess=0.1, other=_P["C0"]["other"]),
    ),
    Scenario("C1", "no structure", False, _c1(ALL["flat"])),
    Scenario("C1", "no structure, three times the noise", False, _c1(ALL["flat"], noise=3.0)),
    Scenario("C1", "slow drift", False, _c1(ALL["drift"])),
    Scenario("C1", "late jump", False, _c1(ALL["jump"])),
    Scenario("C1", "early change, then one of just the margin", False, _c1(_left_over(1.0))),
    Scenario("C1", "plateau, and untrained as well", False, _c1(EARLY(3), ALL["look-alike"])),
    Scenario("C1", "power_at: early plateau", True, _c1(EARLY(_P["C1"]["margins"]))),
    *_worlds("C1", {"early plateau", "flat from the input", "drift"}),
    Scenario("C2", "no structure", False, _c2("neither changes")),
    Scenario("C2", "both settle early", False, _c2("both settle")),
    Scenario("C2", "both drift slowly", False, _c2("both keep changing")),
    Scenario("C2", "both jump late", False, _c2("both jump at the end")),
    Scenario(
        "C2", "text changes by just the margin", False, _c2("text keeps changing", speeds=_moves(1))
    ),
    Scenario("C2", "position only", False, _c2("position only")),
    Scenario(
        "C2", "untrained as well", False, _c2("text keeps changing", control="text keeps changing")
    ),
    Scenario(
        "C2",
        "power_at: text drifts, image settles",
        True,
        _c2("text keeps changing", speeds=_moves(_P["C2"]["margins"])),
    ),
    *_worlds(
        "C2",
        {
            "text moves and changes shape",
            "text moves by just the margin",
            "nothing moves more",
            "both move",
            "position only",
        },
    ),
    Scenario(
        "C3",
        "3 pictures in 100 lose every answer",
        False,
        _c3(image=grids.always(0.97, 0.03), concentrated=True, accuracy=1.0),
    ),
    Scenario(
        "C3", "index just at its margin", False, _c3(image=grids.always(0.8, 0.0), spread=0.6)
    ),
    Scenario(
        "C3",
        "index just at its margin, heavy tails over pictures",
        False,
        _c3(image=grids.always(0.8, 0.0), tails=0.8),
    ),
    Scenario(
        "C3",
        "index just at its margin, three questions to a picture",
        False,
        _c3(image=grids.always(0.8, 0.0), spread=0.6, tails=0.6, questions=3),
        not_met="a few pictures carry most of the divergence, and a bootstrap of 100 draws "
        "too few of them: its bounds are short. BCa and bootstrap-t were tried and hardly help",
    ),
    Scenario("C3", "nothing can be put in place", False, _c3(image=grids.NOT_AT_ALL)),
    Scenario(
        "C3",
        "nothing can be put in place, noise of the same size is harmless",
        False,
        _c3(image=grids.NOT_AT_ALL, noise=grids.SAME),
    ),
    Scenario("C3", "even noise as far as another image is harmless", False, _c3(far=grids.SAME)),
    Scenario(
        "C3",
        "noise as far as another image just at the margin",
        False,
        _c3(far=grids.always(0.8, 0.0), spread=0.6),
    ),
    Scenario(
        "C3",
        "equal states at all layers",
        True,
        _c3(image=grids.always(1.0, 0.0), noise=grids.always(1.0, 0.0)),
    ),
    Scenario("C3", "interchangeable, heavy tails over pictures", True, _c3(**_C3_TRUE, tails=1.2)),
    Scenario(
        "C3",
        "interchangeable, three questions to a picture",
        True,
        _c3(**_C3_TRUE, spread=0.6, tails=0.6, questions=3),
    ),
    Scenario(
        "C3",
        "power_at: interchangeable",
        True,
        _c3(**_C3_TRUE),
    ),
    Scenario(
        "C4",
        "tasks alike, texts hit harder",
        False,
        _c4(
            truncated.MIDDLE,
            truncated.MIDDLE,
            words=1,
            harm={"mcq": 1, "vqa": 1, "chart": 1, "caption": 5},
        ),
    ),
    Scenario("C4", "length only", False, _c4(truncated.FRAGILE, truncated.FRAGILE)),
    Scenario(
        "C4",
        "length only, larger units, heavy tails, clusters",
        False,
        lambda seed: truncated.sweep_tables(
            truncated.LENGTH,
            n=48,
            questions=2,
            spread=0.8,
            tails=1.0,
            function_words=0.34,
            harm={"mcq": 1, "vqa": 1, "chart": 1, "caption": 2},
            seed=seed,
        ),
    ),
    Scenario("C4", "texts keep more", False, _c4(truncated.LATE, truncated.EARLY)),
    Scenario(
        "C4",
        "power_at: texts need more depth, with function words",
        True,
        _c4(
            *(truncated.needs(_P["C4"][k]) for k in ("single", "text")),
            other=_P["C4"]["other"],
            function_words=0.34,
        ),
    ),
    Scenario("C5", "no change", False, _c5()),
    Scenario("C5", "alike, words of the question", False, _c5(_HALF, _HALF, question_words=0.2)),
    Scenario(
        "C5",
        "alike, own ceilings, words of the question",
        False,
        _c5(_HALF, _HALF, question_words=0.2, template=True),
    ),
    Scenario("C5", "length only", False, _c5(chained.needs(0.5, 0.2), cascades=True)),
    Scenario(
        "C5",
        "slips that add up",
        False,
        _c5(chained.needs(0.75, 0.3), chained.needs(0.6), cascades=True),
    ),
    Scenario(
        "C5",
        "power_at: chains move more, words of the question",
        True,
        _c5(
            *(chained.needs(_P["C5"][k]) for k in ("chain", "answer")),
            question_words=0.2,
            template=True,
        ),
    ),
    Scenario("C6", "captions and charts come back alike", False, _c6(0.8, 0.8)),
    Scenario("C6", "captions get exactly half back", False, _c6(0.5, 0.1)),
    Scenario("C6", "shuffled pictures do as well", False, _c6(0.8, 0.2, shuffled=0.8)),
    Scenario("C6", "not converged", False, _c6(0.8, 0.2, curves=recovered.FALLING)),
    Scenario("C6", "captions get 0.55 back", True, _c6(0.55, 0.1)),
    Scenario(
        "C6",
        "power_at: captions come back, charts do not",
        True,
        _c6(_P["C6"]["caption"], _P["C6"]["chart"]),
    ),
    Scenario("C7", "styles alike", False, _c7(styles.even, styles.even)),
    Scenario(
        "C7",
        "long chains score higher, keep the same",
        False,
        _c7(styles.even, styles.even, full={"direct": 0.5, "long": 1.0}),
    ),
    Scenario("C7", "long chains keep less", False, _c7(styles.early, styles.late)),
    Scenario("C7", "power_at: long chains keep more", True, _c7_power(_P["C7"]["exponent"])),
    Scenario(
        "C7",
        "long chains keep more, base's own blind scores",
        True,
        _c7_power(_P["C7"]["exponent"], **styles.OWN),
    ),
    Scenario(
        "C7",
        "styles alike, base's own blind scores",
        False,
        _c7(styles.even, styles.even, **styles.OWN),
    ),
    Scenario("C8", "every cut loses 3 in 100", False, _c8(loss=0.03)),
    Scenario("C8", "words need the picture late", False, _c8(mcq=3, vqa=7)),
    Scenario("C8", "no cut saves a quarter", False, _c8(shares=cuts.SLIGHT)),
    Scenario("C8", "another picture does as well", False, _c8(other=0.9)),
    Scenario("C8", "2 answers in 100 are lost", True, _c8(loss=0.02)),
    Scenario(
        "C8",
        "power_at: a cut that keeps answers",
        True,
        _c8(loss=_P["C8"]["loss"], noise=_P["C8"]["clock_noise"]),
    ),
)
