"""What a training is to do: settled once, from measured rates and trials, and read back by a later sitting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from burnish.choose.aim import balance_for
from burnish.choose.decide import Decision, balance_decision
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench
from burnish.choose.plan import Plan, plan, settled
from burnish.choose.rates import Rates
from burnish.choose.search import search
from burnish.choose.start import start_head
from burnish.choose.trials import FACTORS, Trials, race, too_short
from burnish.methods.base import Head, Method, Tunable, blank_tunable
from burnish.recipe import recipe_from
from burnish.record.folder import SEARCH
from burnish.run.probed import Looked

_PLAN = "plan"  # the part of the ledger with what is settled
_RACE = "race"  # the part that holds the trials of a race of learning rates
_TRYING = "trying"  # the part with the plan that trials are made by


@dataclass(frozen=True)
class Planned:
    """What a training is to do."""

    plan: Plan
    bench: Bench  # its recipe with what the plan settles
    head: Head | None  # that training starts from; None: there is no time to train
    tried: list[Decision]  # what was tried out

    def keep(self, ledger: Ledger) -> None:
        """Make it durable."""
        head = self.head
        tensors = {} if head is None else {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
        tried = [decision.to_json() for decision in self.tried]
        ledger.put(_PLAN, {"plan": self.plan.to_json(), "recipe": asdict(self.bench.recipe), "tried": tried}, tensors)
        ledger.write()

    @classmethod
    def kept(cls, ledger: Ledger, bench: Bench) -> Planned | None:
        """What an earlier sitting kept; None: nothing."""
        known = ledger.get(_PLAN)
        if known is None:
            return None
        told, tensors = known
        recipe = recipe_from(told["recipe"])
        head = Head(tensors["weight"].numpy(), tensors["bias"].numpy(), recipe.head) if tensors else None
        tried = [Decision(**one) for one in told["tried"]]
        return cls(Plan.from_json(told["plan"]), replace(bench, recipe=recipe), head, tried)


def planned(method: Method, looked: Looked, ledger: Ledger) -> Planned:
    """The plan and all that goes with it; what an earlier sitting settled stands."""
    known = Planned.kept(ledger, looked.bench)
    if known is not None:
        return known
    probes, material, bench = looked.probes, looked.material, looked.bench
    probed = probes.kept(bench.recipe.taps, bench.recipe.method)
    rates = Rates(
        material, bench, forward_per_second=probes.images_per_second, at=probed.preprocess.size, frozen=probed.backbone
    )
    labels, classes = material.labels[material.train_rows], len(material.catalog.classes)
    asked = bench.recipe.balance
    bench = replace(bench, recipe=replace(bench.recipe, balance=balance_for(bench.recipe, labels, classes=classes)))
    balanced = [balance_decision(labels, classes)] if (asked, bench.recipe.balance) == ("auto", "sampling") else []
    made, bench, peak, tried = _tried_out(method, rates, replace(looked, bench=bench), ledger)
    blank = _blank(method, bench, classes)(made.freeze)
    recipe = settled(
        bench.recipe,
        made,
        flip=probes.flip,
        peak=peak,
        half=rates.half and not blank.moves_statistics,  # which are learnt in float32
        device=bench.device,
        pretrained=not blank.from_scratch,
    )
    bench = replace(bench, recipe=recipe)
    head = start_head(probes, made, material, bench) if made.steps else None
    found = Planned(made, bench, head, [*balanced, *tried])
    found.keep(ledger)
    return found


def _blank(method: Method, bench: Bench, classes: int) -> Callable[[int], Tunable]:
    """Frozen stages -> what would be trained above them, without a head's weights."""
    return lambda freeze: blank_tunable(method, bench.backbone, replace(bench.recipe, freeze=freeze), classes=classes)


def _tried_out(
    method: Method, rates: Rates, looked: Looked, ledger: Ledger
) -> tuple[Plan, Bench, float, list[Decision]]:
    """(the plan, the bench with what trials of settings came to where some are asked for, the peak learning rate, what was
    tried).
    """
    bench, classes = looked.bench, len(looked.material.catalog.classes)
    # The plan of an earlier sitting that died in trials: those of another one are no trials of it
    trying = ledger.get(_TRYING)
    made = (
        Plan.from_json(trying[0])
        if trying is not None
        else plan(_blank(method, bench, classes), looked.material, bench, rates)
    )
    peak = _blank(method, bench, classes)(made.freeze).peak_learning_rate
    if not made.steps or not (bench.recipe.learning_rate == "race" or bench.recipe.search):
        return made, bench, peak, []
    instead = too_short(made, 1 if bench.recipe.search else len(FACTORS)) if trying is None else None
    if instead is not None:
        bench.watcher.say(f"{instead.what}: {instead.why}")
        if bench.recipe.learning_rate == "race":
            bench = replace(bench, recipe=replace(bench.recipe, learning_rate="auto"))
        return made, bench, peak, [instead]
    ledger.put(_TRYING, made.to_json())
    ledger.write()
    settings, tried = _best_of_trials(method, made, peak, rates, looked, ledger)
    peak = settings.pop("rate") * peak
    bench = replace(bench, recipe=replace(bench.recipe, **settings))
    made = plan(_blank(method, bench, classes), looked.material, bench, rates)  # into what is left of the clock
    return made, bench, peak, tried


def _best_of_trials(
    method: Method, made: Plan, peak: float, rates: Rates, looked: Looked, ledger: Ledger
) -> tuple[dict[str, Any], list[Decision]]:
    """Settings from short runs, "rate" among them as a factor on the default learning rate."""
    # Of the network that is trained
    settings = {
        "freeze": made.freeze,
        "precision": "bfloat16" if rates.half else "float32",
    }
    probes, material = looked.probes, looked.material
    bench = replace(looked.bench, recipe=replace(looked.bench.recipe, **settings))
    trials = Trials(
        method, made, peak, start_head(probes, made, material, bench), probes, material, bench,
        pretrained=method.name != "scratch",
    )  # fmt: skip
    if bench.recipe.search:
        bench.watcher.stage("search")
        settings, decision = search(trials, str(ledger.run / SEARCH), on_state=ledger.write)
        return settings, [decision]
    bench.watcher.stage("race of learning rates")

    def keep(state: dict[str, Any]) -> None:
        ledger.put(_RACE, state)
        ledger.write()

    known = ledger.get(_RACE)
    factor, decision = race(trials, known=known[0] if known is not None else None, keep=keep)
    return {"rate": factor}, [decision]


def is_whole(ledger: Ledger, *, asked: int) -> bool:
    """Whether a run has made all the steps it may make, at this size or a larger one: more time would change nothing."""
    known, trained = ledger.get(_PLAN), ledger.get("tuning")
    if known is None or trained is None:
        return False
    made = Plan.from_json(known[0]["plan"])
    return not made.timed and trained[0]["training"]["steps"] >= made.most and made.final_size >= asked
