"""The words of the report in other languages; English is the key, so what is not translated is shown in English."""

from __future__ import annotations

from collections.abc import Callable

from burnish.errors import RecipeError, nearest, shown
from burnish.measure.intervals import percent
from burnish.measure.verdict import ACCURACY, Verdict, chance, points
from burnish.reports.chinese import CHINESE, FINDINGS, SERVED
from burnish.reports.chinese_robust import ROBUST

Say = Callable[[str], str]
LANGUAGES = ("en", "zh")


def words_in(lang: str) -> Say:
    """A function from English to that language. RecipeError for a language that there is not."""
    if lang not in LANGUAGES:
        raise RecipeError(
            f"lang is {shown(repr(lang))}, expected {' or '.join(LANGUAGES)} (nearest: {nearest(lang, LANGUAGES)})"
        )
    known = ROBUST | CHINESE | FINDINGS | SERVED
    return (lambda text: known.get(text, text)) if lang == "zh" else (lambda text: text)


def verdict_in(lang: str, verdict: Verdict) -> str:
    """The verdict as one sentence."""
    if lang != "zh":
        return verdict.sentence()
    score = "准确率" if verdict.score == ACCURACY else verdict.score
    images = f"{verdict.probe.n:,} 张测试图像" + (f"（{verdict.groups:,} 组）" if verdict.groups is not None else "")
    if verdict.tuned is None or verdict.paired is None:
        low, high = percent(verdict.probe.low), percent(verdict.probe.high)
        found = f"{images}上{score} {percent(verdict.probe.value)}"
        return f"保留冻结探针：{found}（95 % 区间 {low} 至 {high}）。"
    opening = {"better": "微调有效", "worse": "微调有害", "not proven": "未能证明微调有效"}[verdict.word]
    facts, test = verdict.paired, "精确 McNemar 检验" if verdict.score == ACCURACY else "配对自助法"
    if verdict.groups is not None:
        test = "按组的精确检验" if verdict.score == ACCURACY else "按组的配对自助法"
    return (
        f"{opening}：在相同的 {images}上，{score} {percent(verdict.tuned.value)}，冻结探针为 "
        f"{percent(verdict.probe.value)}（相差 {points(facts.difference)} 个百分点，95 % 区间 {points(facts.low)} 至 "
        f"{points(facts.high)}，{test} {chance(facts.p)}）。"
    )
