"""What the command line prints when a verb is done: a page that fits 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from burnish.auditing import Audit
from burnish.backbones.changing.anatomy import Anatomy
from burnish.backbones.zoo import ModelRow
from burnish.choose.decide import ASKED_FOR, STOPPED
from burnish.choose.signals import NOTHING
from burnish.data.audit.findings import by_kind, in_words
from burnish.doctor import Check
from burnish.errors import pasted, shown, some
from burnish.measure.intervals import Interval, percent
from burnish.measure.scores import Scores
from burnish.measure.verdict import chance, difference_in_words, spread_in_words
from burnish.methods.base import Method, options_of
from burnish.record.folder import AUDIT_PAGE, AUDIT_TABLE, LEADERBOARD
from burnish.reports import leaderboard, runs
from burnish.reports.explain import Sanity
from burnish.reports.runs import Compared
from burnish.runtime import minutes
from burnish.ship.answering import Prediction
from burnish.use.evaluating import Evaluation
from burnish.use.explaining import Explained
from burnish.use.finished import Result

_WIDTH = 80  # columns, of text that is wrapped
_AUTO = (
    "auto       the default: frozen heads first; then full, lora for a transformer with few images, or nothing where the heads "
    "were right on all they had not learnt from; the tuned model is kept when validation prefers it by more than a standard error"
)
_CASES = 3  # of each kind of finding
_JACCARD = "classes right by image (Jaccard)"  # what is compared where an image has several classes, beside mAP
_MOSTLY = 2 / 3  # of the test images in one class: how many are right says little of the others


def print_verdict(result: Result) -> None:
    """The end of `fit`: the verdict, the numbers behind it, where everything is."""
    facts, verdict = result.facts, result.verdict
    _paragraph(verdict.sentence())
    sizes = facts.get("image_sizes", {})  # pixels, told where the two models see images of unlike ones
    at = {role: f", {size} px" for role, size in sizes.items()} if len(set(sizes.values())) > 1 else {}
    rows = [(f"frozen probe{at.get('probe', '')}", verdict.probe)]
    if verdict.tuned is not None:
        rows.append((f"tuned{at.get('tuned', '')}", verdict.tuned))
    print()
    for name, interval in rows:
        print(f"  {name[:34]:<34} {_interval(interval)}")
    _print_unequal(facts)
    several = verdict.score != "accuracy"
    for one in facts["baselines"]:
        if one["key"] == "against":
            over = f"over {one['name']}{f', {_JACCARD}' if several else ''}"
            _paragraph(f"{over}: {difference_in_words(one['paired'])}, {chance(one['paired']['p'])}", indent=2)
    counts = facts["counts"]
    left_out = f", {counts['named']} left out by name" if counts["named"] else ""
    left_out += f"; no time for {counts['skipped']:,}" if counts.get("skipped") else ""
    frozen = facts["kept_role"] == "probe"
    kept = f"the {'frozen probe' if frozen else 'tuned model'} ({facts['kept']})"
    print()
    chosen = f", chosen on {counts['val']} validation images" if verdict.tuned is not None else ""
    if any(decision["numbers"].get(ASKED_FOR) for decision in facts["decisions"]):
        chosen = ", because --method asked for it: on the validation images it was not better"
    _row("kept", kept + chosen)
    for decision in facts["decisions"]:
        if decision["what"] == NOTHING:
            words = f"{NOTHING}: {decision['why'].partition(' (')[0]}"
            _row("", words)
        if decision["what"] == STOPPED:
            _row("", shown(f"{STOPPED}: {decision['why']}"))
    if found := facts.get("finding"):
        _row("finds", _in_short(found))
    if (seeds := facts.get("seeds")) and seeds["model"]:
        _row("seeds", spread_in_words(seeds))
    _row("images", f"{counts['train']} train, {counts['val']} val, {counts['test']} test{left_out}")
    _print_data(result)
    budget = facts["budget_seconds"]
    print(f"  time    {minutes(facts['seconds'])}" + (f" of {minutes(budget)}" if budget else ""))
    print(f"  report  {shown(str(result.report))}")
    print(f"  next    burnish predict {pasted(result.folder)} IMAGES...")


def _in_short(found: Mapping[str, Any]) -> str:
    """Of two classes how much of the rarer one the likelier class as answer finds, and what it takes for it besides."""
    told, name, other = found["likeliest"], shown(found["class"]), shown(found["other"])
    false = told["said"] - told["hits"]
    return f"{told['hits']:,} of {found['n']:,} {name}, and takes {false:,} of {found['others']:,} {other} for it"


def _print_unequal(facts: Mapping[str, Any]) -> None:
    """Where most test images are of one class: what always saying that one comes to, and how the others are recognised.

    Of 98 sound parts and 2 with defects 98 % are right without a look at them.
    """
    always = next((one for one in facts["baselines"] if one["key"] == "majority"), None)
    if always is None or always["accuracy"]["value"] < _MOSTLY:
        return
    scores = facts["scores"][facts["kept_role"]]
    asked = [one for one in scores["per_class"] if one["n"]]
    told = asked if len(asked) == 2 else [min(asked, key=lambda one: (one["recall"]["value"], one["name"]))]
    rows = [(f"always {max(asked, key=lambda one: one['n'])['name']}", always["accuracy"])]
    rows += [("mean recall", scores["intervals"]["balanced_accuracy"])] if len(asked) > 2 else []
    rows += [(f"recall, {one['n']:,} images of {one['name']}", one["recall"]) for one in told]
    for name, interval in rows:
        print(f"  {shown(name)[:34]:<34} {_interval(Interval.from_json(interval))}")
    paired = always["paired"]
    if paired["p"] >= 0.05 or paired["low"] <= 0.0:
        _paragraph(
            f"not proven to be better than always the commonest class: {difference_in_words(paired)}, {chance(paired['p'])}",
            indent=2,
        )


def _print_data(result: Result) -> None:
    """What the audit found, in a line or two, where it found something that matters."""
    findings, leaky = result.facts.get("findings") or {}, result.facts.get("leaky")
    said = in_words(findings.get("found") or {})
    if said:
        _row("data", f"{said}; see {shown(str(result.folder / AUDIT_TABLE))}")
    if leaky and leaky["accuracy_without"]:
        without = leaky["accuracy_without"]
        score = _JACCARD if result.verdict.score != "accuracy" else "accuracy"
        words = (
            f"{leaky['images']} test images are nearly the same as one trained on; "
            f"{score} on the other {without['n']:,}: {without['value']:.1%}"
        )
        _row("", words)


def print_leaderboard(facts: Mapping[str, Any], folder: Path) -> None:
    """The end of `compare`: a line or two an arm, and where everything is."""
    val = facts["counts"]["val"]
    by = f"on {val} validation images" if val else "by cross-validation, as there are no validation images"
    chosen = next(row for row in facts["rows"] if row["chosen"])
    more = ""
    if any((row["validation"] or 0.0) > (chosen["validation"] or 0.0) for row in facts["rows"]):
        more = " None is better by more than a standard error, and it is simpler."
    print(textwrap.fill(f"{shown(str(facts['chosen']))} was chosen, {by}.{more}", _WIDTH) + "\n")
    print(f"   {'model · method':<44}{'test':>7}  {'95 % interval':<17}{'val':>7}")
    for number, row in enumerate(facts["rows"], start=1):
        test, val = row["test"], row["validation"]
        share = percent(test["value"]) if test else "-"
        limits = f"{percent(test['low'])} to {percent(test['high'])}" if test else ""
        told = f"{share:>7}  {limits:<17}"
        print(f"{number:>2} {_arm_name(row, 44):<44}{told}{'-' if val is None else f'{val:.1%}':>7}")
        _paragraph(leaderboard.sentence(row), indent=5)
    budget = facts["budget_seconds"]
    print()
    print(f"  test    {facts['counts']['test']:,} images, seen once; differences are to the chosen one")
    if facts.get("several"):  # not told by comparisons of older versions
        _row("scores", _JACCARD)
    if skipped := facts["counts"].get("skipped"):
        print(f"  images  {skipped:,} were left out: no time for all of them")
    print(f"  time    {minutes(facts['seconds'])}" + (f" of {minutes(budget)}" if budget else ""))
    print(f"  page    {shown(str(folder / LEADERBOARD))}")
    print(f"  next    burnish predict {pasted(folder / chosen['package'])} IMAGES...")


def _arm_name(row: Mapping[str, Any], width: int) -> str:
    """Model and method in so many columns: of a long path its end, which tells files apart."""
    model, method = shown(row["model"]), shown(row["method"])[: width - 12]
    room = width - len(method) - 3
    return f"{model if len(model) <= room else '…' + model[1 - room :]} · {method}"


def print_audit(found: Audit, out: Path | None) -> None:
    """What is wrong with the data, kind by kind, with the first cases."""
    counts = found.facts["counts"]
    print(
        f"{counts['scanned']:,} files scanned = {counts['used']:,} read + {counts['named']:,} set aside; "
        f"{counts['classes']:,} {'class' if counts['classes'] == 1 else 'classes'}"
    )
    for row in by_kind(found.findings, cases=_CASES):
        print(f"\n{row['count']:>6,}  {row['title']}  [{row['level']}]")
        for case in row["cases"]:
            first = case["paths"][0] if case["paths"] else case["subject"]
            _paragraph(f"{shown(first)}: {shown(case['evidence'])}", indent=8)
        if row["count"] > len(row["cases"]):
            print(f"        and {row['count'] - len(row['cases']):,} more")
        _paragraph(f"→ {row['advice']}", indent=8)
    if not found.findings:
        print("\nNothing was found.")
    print(f"\n  time    {minutes(found.facts['seconds'])}, {found.facts['images_per_second']:,.0f} images/s")
    if out is not None:
        print(f"  page    {shown(str(out / AUDIT_PAGE))}")
        print(f"  list    {shown(str(out / AUDIT_TABLE))}")
        print("  next    see the page, edit the column exclude, then:")
        print(f"          burnish fit DATA --quarantine {pasted(out / AUDIT_TABLE)}")
    elif found.findings:
        print("  next    --out FOLDER writes a page with pictures and a list of all cases")


def print_runs(rows: Sequence[Compared], n: int, page: Path) -> None:
    """Runs side by side, two lines a run."""
    print(f"{len(rows)} runs on the same {n:,} test images; differences are to the first")
    print(f"scores are {_JACCARD}\n" if any(row.several for row in rows) else "")
    for row in rows:
        print(f"  {shown(row.name)[:34]:<34} {_interval(row.accuracy)}")
        _paragraph(f"{row.kept} on {row.model}; {runs.sentence(row)}", indent=4)
    print(f"\n  page    {shown(str(page))}")


def print_explained(rows: Sequence[Explained], check: Sanity | None) -> None:
    """A line an image, and whether the maps can be believed."""
    for row in rows:
        if row.problem is not None:
            print(f"{shown(row.path)}\tunreadable: {shown(row.problem)}")
        else:
            print(f"{shown(row.path)}\t{shown(row.target or '')} {row.probability or 0.0:.1%}\t{shown(row.file or '')}")
    if check is not None:
        word = "so they tell of the weights" if check.passed else "so do not trust them"
        _paragraph(
            f"With shuffled weights the maps have a rank correlation of {check.similarity:.2f} with these, {word} "
            f"({check.images} image{'' if check.images == 1 else 's'})."
        )


def print_evaluation(found: Evaluation, ood: Mapping[str, Any] | None = None) -> None:
    """Scores, how well images of another kind are told apart, and the classes that are recognised worst."""
    scores = found.scores
    if isinstance(scores, Scores):
        print(f"accuracy           {_interval(scores.accuracy)}  ({scores.n:,} images)")
        for name, title in (("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro F1")):
            print(f"{title:<18} {_interval(scores.intervals[name])}")
    else:
        print(f"mAP                {_interval(scores.mean_average_precision)}  ({scores.n:,} images)")
        rows = {"macro F1": scores.macro_f1, "micro F1": scores.micro_f1, "Jaccard, by image": scores.accuracy}
        for title, one in {**rows, "all classes right": scores.exact}.items():
            print(f"{title:<18} {_interval(one)}")
    if found.groups is not None:
        print(f"groups             {found.groups:>8,}   whole ones are what the intervals are of")
    print(f"log loss           {scores.log_loss:.3f} nats")
    # Of data of one class it is no number.
    if isinstance(scores, Scores) and "auroc" in scores.intervals and scores.intervals["auroc"].value >= 0:
        print(f"AUROC, mean        {_interval(scores.intervals['auroc'])}")
    if found.learnt:
        _paragraph(
            f"careful: {found.learnt:,} of these images are, by content or path, images that the run learnt from; where they "
            "are the same, these scores say little about new ones"
        )
    if not found.learnt_known:
        _paragraph(
            "careful: it is not known which images the run learnt from, but by their paths where its folder tells them; where "
            "some of these are among them, these scores say little about new ones"
        )
    if ood is not None:
        print(f"AUROC, other data  {_interval(Interval.from_json(ood['auroc']))}")
        shares = [f"{ood[key]['beyond_limit']:.1%} of {ood[key]['n']:,}" for key in ("inside", "outside")]
        _paragraph(f"unlike the training images: {shares[0]} images of the data, {shares[1]} of the other data")
    worst = sorted((one for one in scores.per_class if one.n), key=lambda one: (one.recall.value, one.name))[:10]
    print("\nclasses with the lowest recall")
    for one in worst:
        print(f"  {shown(one.name)[:40]:<40} {one.hits:>5} of {one.n:<5} {one.recall.value:6.1%}")
    if found.named:
        print(f"\n{len(found.named)} file{'s' if len(found.named) > 1 else ''} could not be used")
        for named in found.named[:10]:
            print(f"  {shown(named['path'])}: {shown(named['reason'])}")


_MOST_OF_A_SET = 20  # classes: of a thousand a set may hold hundreds, which the CSV and JSON have in full


def print_predictions(predictions: Iterable[Prediction]) -> int:
    """A line an image: path, class, probability; returns how many could not be read."""
    unreadable = 0
    for prediction in predictions:
        if prediction.problem is not None:
            unreadable += 1
            print(f"{shown(prediction.path)}\tunreadable: {shown(prediction.problem)}", flush=True)
            continue
        answers = [
            f"{shown(name)} {share:.1%}"
            for name, share in zip(prediction.classes, prediction.probabilities, strict=True)
        ]
        if prediction.declined is not None:
            answers = [f"unknown ({prediction.declined})", *answers]
        elif prediction.unfamiliar:
            answers.append("(unlike the training images)")
        if prediction.set is not None:
            answers.append(f"{{{some(prediction.set, quote='', most=_MOST_OF_A_SET) if prediction.set else ''}}}")
        if prediction.labels is not None:
            answers = [" | ".join(map(shown, prediction.labels)) or "no class", *answers]
        print(f"{shown(prediction.path)}\t" + "\t".join(answers), flush=True)
    return unreadable


def print_models(rows: Sequence[ModelRow], query: str) -> None:
    """A table of models; the first forty when there is no query. A name that its column cannot hold has a line of its own."""
    most = 40 if not query else 400
    cells = [("model", "M par.", "GMACs", "px", "weights", "licence")]
    for row in rows[:most]:
        parameters = "" if row.parameters is None else _millions(row.parameters)
        macs = "" if row.macs is None else f"{row.macs / 1e9:.2f}"
        cells.append((shown(row.name), parameters, macs, str(row.size or ""), row.where, shown(row.licence)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = max(20, min(widths[0], Console().width - sum(widths[1:]) - 2 * len(widths[1:])))
    for name, *numbers, where, licence in cells:
        if len(name) > room:
            print(name)
            name = ""
        right = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:4], strict=True))
        print(f"{name:<{room}}  {right}  {where:<{widths[4]}}  {licence}".rstrip())
    if len(rows) > most:
        print(f"… and {len(rows) - most} more; narrow it down: burnish models 'resnet*'")
    if query:
        print("stages of one: burnish models NAME --stages; as JSON with families: --json")


def print_anatomy(found: Anatomy) -> None:
    """The stages of a network, a line each, and its blocks."""
    sizes = "only" if found.one_size else "and others"
    print(
        f"{shown(found.name)}  {_millions(found.parameters)} M parameters without the head, {found.macs / 1e9:.2f} GMACs"
    )
    print(f"images of {found.size} px ({sizes}) to {found.width} features; from {shown(found.source)}")
    for note in found.notes:
        print(textwrap.fill(note, _WIDTH, subsequent_indent="  "))
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("", "stage", "output", "M par.", "GMACs", "blocks"):
        justify = "right" if title in ("", "M par.", "GMACs") else "left"
        table.add_column(title, justify=justify, overflow="fold")
    for row in found.stages:
        blocks = row.blocks if len(row.blocks) < 3 else (row.blocks[0], "…", row.blocks[-1])
        table.add_row(
            str(row.number),
            Text(shown(row.name)),
            " × ".join(map(str, row.output)),
            _millions(row.parameters),
            f"{row.macs / 1e9:.3f}",
            Text(shown(" ".join(blocks))),
        )
    Console(highlight=False).print(table)
    print(f"--freeze N keeps the first N stages; --depth {found.depth or '(no blocks)'} is all blocks")
    names = ", ".join(found.removable[:8]) + (", …" if len(found.removable) > 8 else "")
    print(textwrap.fill(f"--remove takes out, for example: {names or 'no block'}", _WIDTH, subsequent_indent="  "))


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}" if count >= 1e6 else f"{count / 1e6:.2f}"


def print_methods(found: Sequence[Method], *, full: bool) -> None:
    """A line or two a method; with `full` its whole description and its options."""
    for method in found:
        print(textwrap.fill(f"{method.name:<11}{method.summary}", _WIDTH, subsequent_indent=" " * 11))
        print(textwrap.fill(f"when: {method.when}", _WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 17))
        print(f"           paper: {method.paper}")
        if full:
            print()
            for paragraph in _without_margin(type(method).__doc__ or "").split("\n\n"):
                formula = paragraph.startswith(" ")
                _paragraph(paragraph.strip() if formula else " ".join(paragraph.split()), indent=15 if formula else 11)
                print()
            for option, value in options_of(type(method)()).items():
                print(f"           option {option}, default {value}: --method {method.name}:{option}={value}")
    if not full:
        print(textwrap.fill(_AUTO, _WIDTH, subsequent_indent=" " * 11))


def _without_margin(text: str) -> str:
    """A docstring without the indentation of its class."""
    first, _, rest = text.partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip()


def print_doctor(found: Sequence[Check]) -> None:
    """A line a check, and what to do about those that need something."""
    marks = {"fine": "ok  ", "note": "note", "broken": "FIX "}
    for one in found:
        line = f"{marks[one.state]}  {one.what:<22} {shown(one.found)}"
        print(textwrap.fill(line, _WIDTH, subsequent_indent=" " * 29, break_on_hyphens=False, break_long_words=False))
        if one.remedy:
            _paragraph(one.remedy, indent=6)


def _interval(interval: Interval) -> str:
    return f"{percent(interval.value):>8}   95 % interval {percent(interval.low)} to {percent(interval.high)}"


def _row(name: str, text: str) -> None:
    """What is said under a name, or, where that is empty, below what was said under the last one."""
    start = f"  {name:<8}"
    print(
        textwrap.fill(
            text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False,
            break_long_words=False,
        )
    )  # fmt: skip


def _paragraph(text: str, *, indent: int = 0) -> None:
    whole = shown(text).replace(" %", "\N{NO-BREAK SPACE}%")  # no line begins with a percent sign
    filled = textwrap.fill(whole, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
    print(filled.replace("\N{NO-BREAK SPACE}%", " %"))
