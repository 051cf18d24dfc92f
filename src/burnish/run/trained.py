"""The trained stage of a job: settled from measured rates, kept on the clock, saved whenever it becomes better."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import torch

from burnish.choose.aim import balance_for
from burnish.choose.decide import Decision, balance_decision, tuned_contender
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan, plan, settled
from burnish.choose.probing import Probed, Probes
from burnish.choose.proof import Contender
from burnish.choose.rates import Rates
from burnish.choose.search import search
from burnish.choose.start import start_head
from burnish.choose.trials import FACTORS, Trials, race, too_short
from burnish.choose.tuning import Candidate, Tuned, Tuning
from burnish.errors import RunError
from burnish.methods.base import Head, Method, Tunable, blank_tunable
from burnish.recipe import recipe_from
from burnish.result import RECIPE, SEARCH, RunFolder
from burnish.run.further import FURTHER
from burnish.run.journal import Journal
from burnish.runtime import minutes
from burnish.ship.bundle import Bundle, write_bundle
from burnish.train.loop import Step

_TOLD = ("epochs", "steps", "batch", "sizes", "freeze", "views", "balanced", "reserve_seconds", "step_seconds")
_RACE = "race"  # the part of the ledger that holds its trials
_TRYING = "trying"  # the part of a ledger with the plan that trials are made by
_OFF_SECONDS, _OFF_SHARE = 1.0, 0.01  # of the budget: a run later than both gets a shorter plan at once
_FAR_OFF = 3.0  # times that: then also where saving has had its share of the time


def tune_on_the_clock(
    method: Method,
    probes: Probes,
    material: Material,
    bench: Bench,
    folder: RunFolder,
    journal: Journal,
    ledger: Ledger,
) -> tuple[Tuned | None, Bench, list[Decision]]:
    """Train as long as the clock allows; the best candidate, the bench with its settled recipe, and why.

    Whenever the moving average beats all that was saved before on the validation images, it becomes the package.
    """
    flip = Decision("flip: on" if probes.flip else "flip: off", probes.flip_reason)
    if bench.recipe.augment == "none" and bench.recipe.flip == "auto":
        flip = Decision("flip: off", "augment none leaves images alone")
    if len(material.val_rows) == 0:
        return None, bench, [flip, Decision("probe kept", "there are no validation images to choose by")]
    bench.watcher.stage("plan")
    made, bench, head, tried = settle_plan(method, probes, material, bench, ledger)
    told = made.to_json()
    why = Decision("schedule", made.reason, {key: told[key] for key in _TOLD})
    folder.write(RECIPE, bench.recipe.to_toml())
    bench.watcher.say(made.reason)
    if head is None:
        return None, bench, [flip, *tried, why]
    bench.watcher.stage("tune")
    tuning = Tuning(method.prepare(bench.backbone, head, bench.recipe), made, probes, material, bench)
    train(tuning, probes.kept(bench.recipe.taps), folder, journal, ledger)
    bench.watcher.stage("choose")
    reasons = [flip, *tried, why]
    if tuning.note:
        reasons.append(Decision("fallback", tuning.note))
    if tuning.blended:
        reasons.append(Decision("cutmix: not used", tuning.blended))
    if tuning.tunable.note:
        reasons.append(Decision(f"{method.name}: what learns", tuning.tunable.note))
    if tuning.diverged is not None:
        reasons.append(Decision("training stopped early", tuning.diverged))
    best = tuning.best()
    if best is None:
        reasons.append(Decision("the trained weights are not used", "the network gives no numbers with any of them"))
    return best, bench, reasons


def tried_out(
    method: Method,
    made: Plan,
    peak: float,
    rates: Rates,
    probes: Probes,
    material: Material,
    bench: Bench,
    ledger: Ledger,
) -> tuple[dict[str, Any], list[Decision]]:
    """Settings from short runs, "rate" among them as a factor on the default learning rate."""
    # Of the network that is trained
    settings = {
        "freeze": made.freeze,
        "precision": "bfloat16" if rates.half else "float32",
    }
    bench = replace(bench, recipe=replace(bench.recipe, **settings))
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


def settle_plan(
    method: Method, probes: Probes, material: Material, bench: Bench, ledger: Ledger
) -> tuple[Plan, Bench, Head | None, list[Decision]]:
    """The plan, the bench with the recipe it settles, the head training starts from (None: no time), what was tried out."""
    known = ledger.get("plan")
    if known is not None:
        made, recipe = Plan.from_json(known[0]["plan"]), recipe_from(known[0]["recipe"])
        head = Head(known[1]["weight"].numpy(), known[1]["bias"].numpy(), recipe.head) if known[1] else None
        return made, replace(bench, recipe=recipe), head, [Decision(**told) for told in known[0]["tried"]]
    probed = probes.kept(bench.recipe.taps, bench.recipe.method)
    rates = Rates(
        material, bench, forward_per_second=probes.images_per_second, at=probed.preprocess.size, frozen=probed.backbone
    )

    def tunable_at(freeze: int) -> Tunable:
        return blank_tunable(method, bench.backbone, replace(bench.recipe, freeze=freeze), classes=classes)

    labels, classes = material.labels[material.train_rows], len(material.catalog.classes)
    asked = bench.recipe.balance
    bench = replace(bench, recipe=replace(bench.recipe, balance=balance_for(bench.recipe, labels, classes=classes)))
    balanced = [balance_decision(labels, classes)] if (asked, bench.recipe.balance) == ("auto", "sampling") else []
    # The plan of an earlier sitting that died in trials: those of another one are no trials of it
    trying = ledger.get(_TRYING)
    made = Plan.from_json(trying[0]) if trying is not None else plan(tunable_at, material, bench, rates)
    first = tunable_at(made.freeze)
    peak = first.peak_learning_rate
    tried: list[Decision] = []
    wanted = made.steps > 0 and (bench.recipe.learning_rate == "race" or bench.recipe.search)
    instead = too_short(made, 1 if bench.recipe.search else len(FACTORS)) if wanted and trying is None else None
    if instead is not None:
        bench.watcher.say(f"{instead.what}: {instead.why}")
        tried = [instead]
        if bench.recipe.learning_rate == "race":
            bench = replace(bench, recipe=replace(bench.recipe, learning_rate="auto"))
    elif wanted:
        ledger.put(_TRYING, made.to_json())
        ledger.write()
        settings, tried = tried_out(method, made, peak, rates, probes, material, bench, ledger)
        peak = settings.pop("rate") * peak
        bench = replace(bench, recipe=replace(bench.recipe, **settings))
        made = plan(tunable_at, material, bench, rates)  # into what is left of the clock
    half = rates.half and not first.moves_statistics  # which are learnt in float32
    recipe = settled(
        bench.recipe,
        made,
        flip=probes.flip,
        peak=peak,
        half=half,
        device=bench.device,
        pretrained=not first.from_scratch,
    )
    bench = replace(bench, recipe=recipe)
    head = start_head(probes, made, material, bench) if made.steps else None
    tensors = {} if head is None else {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    tried = [*balanced, *tried]
    told = [decision.to_json() for decision in tried]
    ledger.put("plan", {"plan": made.to_json(), "recipe": asdict(bench.recipe), "tried": told}, tensors)
    ledger.write()
    return made, bench, head, tried


def is_whole(ledger: Ledger, *, asked: int) -> bool:
    """Whether a run has made all the steps it may make, at this size or a larger one: more time would change nothing."""
    known, trained = ledger.get("plan"), ledger.get("tuning")
    if known is None or trained is None:
        return False
    made = Plan.from_json(known[0]["plan"])
    return not made.timed and trained[0]["training"]["steps"] >= made.most and made.final_size >= asked


def train(tuning: Tuning, probed: Probed, folder: RunFolder, journal: Journal, ledger: Ledger) -> None:
    """Iterate the tuning to its end: journal, package and state between the steps."""
    budget = tuning.bench.clock.budget_seconds
    saved = float(probed.val_right.mean())
    tuning.divide()
    known = ledger.get("tuning")
    resumed = known is not None
    if known is not None:
        tuning.restore(known[0], known[1])
        saved = known[0]["saved"]
        facts, tensors = tuning.state()  # in place of what was read, which would stay in memory beside it
        ledger.put("tuning", {**known[0], **facts}, tensors)
        del known, tensors
    # A run that was taken up follows the plan it saved, to the same bits; a new one is kept on the clock.
    pace = tuning.pace() if budget is not None and not resumed else None
    off = max(_OFF_SECONDS, _OFF_SHARE * (budget or 0.0))

    def save_state() -> None:
        facts, tensors = tuning.state()
        ledger.put("tuning", {**facts, "saved": saved, "rows": journal.rows}, tensors)
        ledger.write()

    journal.begin(tuning)
    stepped, refused = time.monotonic(), list[RunError]()
    began, before, told = (
        stepped,
        tuning.training.steps,
        budget is not None,
    )  # how long it takes, which the clock bounds
    for event in tuning.events():
        if isinstance(event, Step):
            stepped = time.monotonic()
            if pace is not None:
                pace.saw_step(event.size, event.seconds)
        else:
            journal.epoch(*event, tuning)
            if not told and before < tuning.training.steps < tuning.training.total:
                step = (time.monotonic() - began) / (tuning.training.steps - before)
                tuning.bench.watcher.say(_what_is_left(tuning, step, event[0].size))
                told = True
            candidate = event[1]
            if candidate.accuracy > saved and _is_saved(candidate, tuning, folder, told=refused):
                saved = candidate.accuracy
            if pace is not None:  # the validation images were looked at before the epoch was told
                pace.saw_between(event[0].size, time.monotonic() - stepped)
        bearable = off if ledger.affords_a_save() else _FAR_OFF * off
        if ledger.due() or (pace is not None and pace.is_off(tuning.training, bearable)):
            if pace is not None and tuning.training.steps < tuning.training.total:  # a run at its end stays there
                tuning.training.total = pace.total(tuning.training)
            save_state()
    save_state()


def _what_is_left(tuning: Tuning, step_seconds: float, size: int) -> str:
    """How long the steps ahead take, in words, where those at `size` pixels take so long; others by their area."""
    training, schedule = tuning.training, tuning.plan.schedule
    starts = [max(start, training.progress) for start, _ in schedule.sizes] + [1.0]
    parts = zip(schedule.sizes, starts[:-1], starts[1:], strict=True)
    areas = sum(max(0.0, end - start) * (other / size) ** 2 for (_, other), start, end in parts)
    seconds = areas * training.total * step_seconds
    return f"{training.total - training.steps:,} steps are left, about {minutes(seconds)} at this speed"


def _is_saved(candidate: Candidate, tuning: Tuning, folder: RunFolder, *, told: list[RunError]) -> bool:
    """Make the tuning with these weights the run's package, or, where the disk refuses, say so once: a better one will come."""
    bench = tuning.bench
    model = Tuned(tuning.tunable.backbone, tuning.classifier(candidate), candidate, (candidate,))
    try:
        save(folder, tuned_contender(model, tuning.material, method=bench.recipe.method), tuning.material)
    except RunError as error:
        if not told:
            bench.watcher.say(f"the better model could not be saved, training goes on: {error}")
        told.append(error)
        return False
    return True


def save(folder: RunFolder, contender: Contender, material: Material) -> None:
    """Make this model the run's package."""
    bundle = Bundle.of(
        contender.backbone,
        contender.classifier,
        classes=material.catalog.classes,
        method=contender.name,
        preprocess=contender.preprocess,
        temperature=contender.temperature,
        held_out=contender.held_out,
        familiarity=contender.familiarity,
        thresholds=None if contender.thresholds is None else tuple(map(float, contender.thresholds)),
        facts={
            "validation_accuracy": contender.validation_accuracy,
            **({FURTHER: True} if contender.backbone.learnt is not None else {}),
        },
    )
    write_bundle(folder.path, bundle)
