"""The trained stage of a job: settled from measured rates, kept on the clock, saved whenever it becomes better."""

from __future__ import annotations

import time

from burnish.choose.decide import STOPPED, Decision, tuned_contender
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench
from burnish.choose.probing import Probed
from burnish.choose.tuning import Candidate, Tuned, Tuning
from burnish.errors import RunError
from burnish.methods.base import Method
from burnish.record.folder import RECIPE, RunFolder
from burnish.run.journal import Record
from burnish.run.packed import save
from burnish.run.planned import planned
from burnish.run.probed import Looked
from burnish.runtime import minutes
from burnish.train.loop import Step

_TOLD = ("epochs", "steps", "batch", "sizes", "freeze", "views", "balanced", "reserve_seconds", "step_seconds")
_OFF_SECONDS, _OFF_SHARE = 1.0, 0.01  # of the budget: a run later than both gets a shorter plan at once
_FAR_OFF = 3.0  # times that: then also where saving has had its share of the time


def tune_on_the_clock(method: Method, looked: Looked, record: Record) -> tuple[Tuned | None, Bench, list[Decision]]:
    """Train as long as the clock allows; the best candidate, the bench with its settled recipe, and why.

    Whenever the moving average beats all that was saved before on the validation images, it becomes the package.
    """
    probes, material, bench = looked.probes, looked.material, looked.bench
    flip = Decision("flip: on" if probes.flip else "flip: off", probes.flip_reason)
    if bench.recipe.augment == "none" and bench.recipe.flip == "auto":
        flip = Decision("flip: off", "augment none leaves images alone")
    if len(material.val_rows) == 0:
        return None, bench, [flip, Decision("probe kept", "there are no validation images to choose by")]
    bench.watcher.stage("plan")
    found = planned(method, looked, record.ledger)
    made, bench = found.plan, found.bench
    told = made.to_json()
    reasons = [flip, *found.tried, Decision("schedule", made.reason, {key: told[key] for key in _TOLD})]
    record.folder.write(RECIPE, bench.recipe.to_toml())
    bench.watcher.say(made.reason)
    if found.head is None:
        return None, bench, reasons
    bench.watcher.stage("tune")
    tuning = Tuning(method.prepare(bench.backbone, found.head, bench.recipe), made, probes, material, bench)
    train(tuning, probes.kept(bench.recipe.taps), record)
    bench.watcher.stage("choose")
    best = tuning.best()
    return best, bench, [*reasons, *_what_happened(tuning, method, best)]


def _what_happened(tuning: Tuning, method: Method, best: Tuned | None) -> list[Decision]:
    """What of a training was not as asked, or ended early."""
    happened = [
        ("fallback", tuning.note),
        ("cutmix: not used", tuning.blended),
        (f"{method.name}: what learns", tuning.tunable.note),
        (STOPPED, tuning.diverged),
        ("the trained weights are not used", "" if best else "the network gives no numbers with any of them"),
    ]
    return [Decision(what, why) for what, why in happened if why]


def train(tuning: Tuning, probed: Probed, record: Record) -> None:
    """Iterate the tuning to its end: journal, package and state between the steps."""
    folder, ledger, journal = record.folder, record.ledger, record.journal
    budget = tuning.bench.clock.budget_seconds
    tuning.divide()
    saved_before = _taken_up(tuning, ledger)
    saved = float(probed.val_right.mean()) if saved_before is None else saved_before
    # A run that was taken up follows the plan it saved, to the same bits; a new one is kept on the clock.
    pace = tuning.pace() if budget is not None and saved_before is None else None
    off = max(_OFF_SECONDS, _OFF_SHARE * (budget or 0.0))

    def save_state() -> None:
        folder.require_held()
        facts, tensors = tuning.state()
        ledger.put("tuning", {**facts, "saved": saved, "rows": journal.rows}, tensors)
        ledger.write()

    journal.begin(tuning)
    stepped, refused = time.monotonic(), list[RunError]()
    began, before = stepped, tuning.training.steps
    told = budget is not None  # how long it takes, which the clock bounds
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
    if tuning.diverged is not None:
        tuning.bench.watcher.say(f"{STOPPED}: {tuning.diverged}")


def _taken_up(tuning: Tuning, ledger: Ledger) -> float | None:
    """Stand where an earlier sitting stopped: how right the model that it had saved is on validation; None in a first sitting."""
    known = ledger.get("tuning")
    if known is None:
        return None
    before, tensors = known
    tuning.restore(before, tensors)
    facts, tensors = tuning.state()  # in place of what was read, which would stay in memory beside it
    ledger.put("tuning", {**before, **facts}, tensors)
    return before["saved"]


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
