import dataclasses

import pytest

import burnish
from burnish.elsewhere import _ELSEWHERE, _NEEDLESS
from burnish.errors import RecipeError
from burnish.recipe import Recipe, Settings, parse_budget, recipe_from


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5m", 90),
        ("2d", 172800),
        (45, 45),
        ("none", None),
        (None, None),
        (" 10M ", 600),
        ("10 min", 600),
        ("1 hour 30 minutes", 5400),
        ("90 secs", 90),
    ],
)
def test_a_budget_is_read_with_its_unit(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "10x",
        "10 more",
        "10m, 5s",
        "5 10m",
        "",
        "m",
        "10",
        "-5m",
        "0s",
        "1e9999s",
        "ten minutes",
        "10m!",
        float("nan"),
        float("inf"),
    ],
)
def test_a_budget_that_is_no_time_is_refused_with_the_forms_that_are(text):
    with pytest.raises(RecipeError, match=r"expected .*(90s|more than zero)"):
        parse_budget(text)


def test_a_budget_without_unit_asks_which_was_meant():
    with pytest.raises(RecipeError, match='"10s" or "10m"'):
        parse_budget("10")


@pytest.mark.parametrize("text", ["0", "0.0"])
def test_none_of_any_unit_is_no_budget_and_no_unit_is_asked_for(text):
    with pytest.raises(RecipeError, match=r'or "none"$'):
        parse_budget(text)


def test_all_mistakes_come_in_one_message():
    with pytest.raises(RecipeError) as caught:
        recipe_from({"epochs": -1, "seed": "x", "flip": "maybe", "stage_decay": 2.0})
    for field in ("epochs is -1", "seed is 'x'", "flip is 'maybe'", "stage_decay is 2.0"):
        assert field in str(caught.value)


def test_an_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no setting 'lerning_rate' \(nearest: learning_rate"):
        recipe_from({"lerning_rate": 1})


@pytest.mark.parametrize(("word", "here"), [("lr", "learning_rate"), ("imgsz", "image_size"), ("time_limit", "budget")])
def test_who_uses_the_words_of_other_tools_is_told_those_of_this_one(word, here):
    with pytest.raises(RecipeError, match=rf"no setting '{word}' \(here it is {here}\)"):
        recipe_from({word: 1})


def test_what_other_tools_need_and_this_one_does_not_is_said():
    with pytest.raises(RecipeError, match=r"no setting .patience. .*average at the end is kept"):
        recipe_from({"patience": 3})


def test_words_of_other_tools_lead_to_what_is_there_and_hide_nothing():
    settings = {field.name for field in dataclasses.fields(Recipe)} | {"budget", "out", "workers"}
    assert set(_ELSEWHERE) <= settings
    words = [word for some in (*_ELSEWHERE.values(), *_NEEDLESS.values()) for word in some]
    assert len(words) == len(set(words)) and not set(words) & settings


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(budget_seconds=None, epochs=3, learning_rate=1e-4, flip="on", model="random:x")]
)
def test_a_recipe_survives_toml(recipe):
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_bool_is_not_a_number():
    with pytest.raises(RecipeError, match="epochs"):
        Recipe(epochs=True)


@pytest.mark.parametrize(
    "setting", [{"model": "random:test_vit"}, {"method": "lora"}, {"seeds": 3}, {"search": True}, {"budget_seconds": 9}]
)
def test_settings_that_a_comparison_has_no_use_for_are_refused(tmp_path, setting):
    with pytest.raises(RecipeError, match=f"{next(iter(setting))} is no setting of this call"):
        burnish.compare(tmp_path, **setting)


def test_seconds_under_another_name_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="say budget"):
        burnish.fit(tmp_path, budget_seconds=60)


def test_a_misspelt_budget_leads_to_the_name_it_is_given_by():
    with pytest.raises(RecipeError, match=r"no setting 'bugdet' \(nearest: budget\b(?!_)"):
        burnish.fit("nowhere", bugdet="1m")


def test_type_checkers_know_the_settings_of_fit_by_name_and_kind():
    """Both are text here: what a checker reads of the one is what it reads of the other."""
    of_recipe = {name: kind for name, kind in Recipe.__annotations__.items() if name != "budget_seconds"}
    kinds = {name: kind.__forward_arg__ for name, kind in Settings.__annotations__.items()}
    assert kinds == of_recipe
