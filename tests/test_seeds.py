"""Several trainings with seeds of their own: the time they need, what they took, and the weights they begin with."""

import json

import pytest

from burnish.errors import NotARun, RecipeError
from burnish.recipe import Recipe
from burnish.record.folder import RunFolder
from burnish.run import seeds as seeds_module
from burnish.run.seeds import _seconds_of, require_time_for_seeds
from burnish.runtime import Clock, Nobody


def test_a_budget_that_holds_the_trainings_is_not_refused():
    for budget, seeds in ((60.0, 2), (10.0, 2), (None, 100), (2.0, 1)):
        require_time_for_seeds(Recipe(seeds=seeds, budget_seconds=budget))
    with pytest.raises(RecipeError, match=r"2 trainings in 9 s .*--budget 10s"):
        require_time_for_seeds(Recipe(seeds=2, budget_seconds=9.0))


@pytest.mark.parametrize("facts", [{}, {"seconds": "long"}, {"seconds": -1}, {"seconds": None}])
def test_a_seed_that_does_not_say_how_long_it_took_is_named(facts, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(facts))
    with pytest.raises(NotARun, match="does not say how long"):
        _seconds_of(tmp_path)


def test_the_other_seeds_have_the_address_that_was_asked_for(monkeypatch, tmp_path):
    """The facts of the first are without its query and its fragment, where the hash of a file from the web stands."""
    address, asked = "https://here.invalid/w.pth?token=1#sha256=" + 64 * "0", []

    def job(catalog, recipe, folder, clock, *, by_clock):
        asked.append(recipe.model)
        raise KeyboardInterrupt

    facts = {"seconds": 1.0, "recipe": {"model": "https://here.invalid/w.pth", "crop_mode": "center"}, "scores": {
        "probe": {"accuracy": {"value": 0.5}}}, "kept": "probe", "method": "probe"}  # fmt: skip
    monkeypatch.setattr(seeds_module, "_with_splits", lambda catalog, *_: catalog)
    monkeypatch.setattr(seeds_module, "method_of", lambda facts: "probe")
    for model, expected in ((address, address), ("auto", "https://here.invalid/w.pth")):
        with RunFolder.open(tmp_path / model[:4]) as folder, pytest.raises(KeyboardInterrupt):
            recipe = Recipe(model=model, seeds=2)
            seeds_module.other_seeds(
                job, None, recipe, folder, facts, Clock.start(None, from_process_start=False), Nobody()
            )
        assert asked.pop() == expected
