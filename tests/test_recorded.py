"""What a step's recorded kernels must come to: the same as without. Recorded by a stand-in; on a card too, where there is one."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from stepping import gradient
from torch import nn

import burnish
from burnish.train import recorded
from burnish.train.objective import Objective, step
from burnish.train.recorded import VARIABLE, Recordings

CLASSES, PLAIN = 3, Objective()


class Player:
    """Records as a card does: what it plays reads and writes the same tensors, whatever Python's names point to by then."""

    def __init__(self, module):
        self.module, self.recorded, self.played = module, 0, 0

    def __call__(self, work):
        self.recorded += 1
        loss = work()
        kept = [(one, one.grad) for one in self.module.parameters() if one.grad is not None]

        def play():
            self.played += 1
            before = [(one, one.grad) for one in self.module.parameters()]
            loss.copy_(work())
            for one, into in kept:
                into.copy_(one.grad)
            for one, was in before:
                one.grad = was

        return play, loss


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch):
    monkeypatch.setattr(Recordings, "refused", {})


def network():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )
    return nn.Sequential(*layers).eval()


def batch(number, images=6, side=8):
    draw = torch.Generator().manual_seed(number)
    return torch.randn(images, 3, side, side, generator=draw), torch.arange(images) % CLASSES


def trained(module, objective=PLAIN, recordings=None, batches=(6, 5, 6, 5, 6), several=False, sides=(8,)):
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
    losses = []
    for number, images in enumerate(batches):
        views, labels = batch(number, images, sides[number % len(sides)])
        labels = nn.functional.one_hot(labels, CLASSES) if several else labels
        losses.append(step(module, optimiser, views, labels, objective, number, recordings=recordings))
    return losses, module.state_dict()


def assert_same(one, two, tolerance=0.0):
    assert one[0] == pytest.approx(two[0], rel=tolerance, abs=0)
    for name, value in one[1].items():
        torch.testing.assert_close(value, two[1][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(label_smoothing=0.1),
        Objective(mixup=0.4),
        Objective(mixup=0.4, cutmix=1.0, class_weights=(0.5, 2.0, 0.5)),
        Objective(sam=0.05),
        Objective(half=True),
    ],
    ids=["plain", "mixup", "both, weighted", "sam", "bfloat16"],
)
@pytest.mark.parametrize("several", [False, True])
def test_steps_of_recorded_gradients_are_the_steps_without(objective, several):
    module = network()
    player, told = Player(module), []
    found = trained(module, objective, Recordings(player, told.append), several=several)
    # A share is a number of 32 bits where it is played, of 64 elsewhere.
    assert_same(found, trained(network(), objective, several=several), 1e-5 if objective.mixup else 0.0)
    assert not told and player.recorded <= 4 and player.played >= 5


def test_each_shape_is_recorded_once_and_the_oldest_forgotten():
    module = network()
    player = Player(module)
    found = trained(module, recordings=Recordings(player), batches=(6, 5, 6, 5, 6))
    assert player.recorded == 2
    assert_same(found, trained(network(), batches=(6, 5, 6, 5, 6)))
    again = network()
    player = Player(again)
    found = trained(again, recordings=Recordings(player), batches=(6, 5, 4, 6), sides=(8, 8, 10, 8))
    assert player.recorded == 4
    assert_same(found, trained(network(), batches=(6, 5, 4, 6), sides=(8, 8, 10, 8)))


def test_weights_that_moved_in_memory_or_begin_to_learn_are_recorded_anew():
    module = network()
    player = Player(module)
    recordings = Recordings(player)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    views, labels = batch(0)
    module[0].requires_grad_(False)
    gradient(module, optimiser, views, labels, Objective(), 0, recordings)
    assert player.recorded == 1 and module[0].weight.grad is None
    module[0].requires_grad_(True)
    gradient(module, optimiser, views, labels, Objective(), 1, recordings)
    assert player.recorded == 2 and module[0].weight.grad is not None
    module[0].requires_grad_(False)
    gradient(module, optimiser, views, labels, Objective(), 2, recordings)
    assert player.recorded == 2 and module[0].weight.grad is None, "what learns no more has no gradient left over"
    with torch.no_grad():
        module[5].weight.data = module[5].weight.data.clone() * 2
    loss = gradient(module, optimiser, views, labels, Objective(), 3, recordings)
    assert player.recorded == 3
    assert loss == gradient(module, optimiser, views, labels, Objective(), 3)


@pytest.mark.parametrize("kind", ["drops", "learns statistics", "in pieces"])
def test_what_draws_or_learns_statistics_or_goes_in_pieces_is_not_recorded(kind, monkeypatch):
    module = network()
    if kind == "drops":
        module.insert(5, nn.Dropout(0.5).train())
    elif kind == "learns statistics":
        module[1].train()
    else:
        monkeypatch.setattr("burnish.train.objective.PIXELS_AT_ONCE", 2 * 8 * 8)
    plain = copy.deepcopy(module)
    player = Player(module)
    assert_same(trained(module, recordings=Recordings(player)), trained(plain))
    assert not player.recorded


def refusing(error):
    def record(work):
        work()
        raise error

    return record


def wrong(work):
    loss = work()
    return lambda: loss.mul_(2.0), loss


@pytest.mark.parametrize(
    "record, why",
    [
        (refusing(RuntimeError("operation not permitted when stream is capturing\nmore")), "when stream is capturing$"),
        (refusing(RuntimeError()), "RuntimeError$"),
        (refusing(torch.OutOfMemoryError("x")), "no memory to record"),
        (wrong, "another gradient"),
    ],
)
def test_where_it_cannot_be_recorded_steps_are_as_usual_and_that_is_said_once(record, why):
    told = []
    module = network()
    recordings = Recordings(record, told.append)
    assert_same(trained(module, recordings=recordings), trained(network()))
    assert len(told) == 1 and told[0].startswith("each step's kernels are launched one by one: ")
    assert re.search(why, told[0])


def test_a_gradient_that_is_played_wrong_is_found():
    module = network()

    def record(work):
        play, loss = Player(module)(work)

        def off():
            play()
            module[0].weight.grad.mul_(1.05)

        return off, loss

    told = []
    recordings = Recordings(record, told.append)
    assert_same(trained(module, recordings=recordings), trained(network()))
    assert "another gradient" in told[0]


def test_a_loss_that_is_no_number_moves_nothing_recorded_or_not():
    for good_first in (True, False):
        module = network()
        recordings = Recordings(Player(module))
        optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
        if good_first:
            step(module, optimiser, *batch(0), Objective(), 0, recordings=recordings)
        before = copy.deepcopy(module.state_dict())
        views, labels = batch(1)
        loss = step(module, optimiser, views * float("nan"), labels, Objective(), 1, recordings=recordings)
        assert loss != loss
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_failed_once_is_not_tried_again_but_for_memory():
    told = []
    for error, refused in ((torch.OutOfMemoryError("x"), {}), (RuntimeError("no"), {"a": "no"})):
        module = network()
        trained(module, recordings=Recordings(refusing(error), of="a"))
        assert Recordings.refused == refused
    assert Recordings.on(torch.device("cuda"), told.append, of="a")._record is None
    assert told == ["each step's kernels are launched one by one: no"]


def test_one_network_that_is_refused_leaves_the_others_recorded_and_three_leave_none():
    device = torch.device("cuda")
    for name in "abc":
        assert Recordings.on(device, of="another")._record is not None
        trained(network(), recordings=Recordings(refusing(RuntimeError("no")), of=name))
    assert Recordings.on(device, of="another")._record is None


def test_seconds_of_recording_are_not_those_of_a_step():
    module = network()
    recordings = Recordings(Player(module))
    gradient(module, torch.optim.SGD(module.parameters()), *batch(0), Objective(), 0, recordings)
    first = recordings.seconds
    assert first > 0.0
    gradient(module, torch.optim.SGD(module.parameters()), *batch(1), Objective(), 1, recordings)
    assert recordings.seconds == first


def test_a_processor_records_nothing_and_a_card_can_be_told_not_to(monkeypatch):
    assert Recordings.on(torch.device("cpu"))._record is None
    assert Recordings.on(torch.device("cuda"))._record is not None
    monkeypatch.setenv(VARIABLE, "off")
    assert Recordings.on(torch.device("cuda"))._record is None


def test_a_whole_training_is_the_same_with_recordings(shapes, tmp_path, monkeypatch):
    settings = {"model": "random:test_resnet", "image_size": 32, "cache": "off", "budget": None, "epochs": 2}
    burnish.fit(shapes, method="full", out=tmp_path / "plain", **settings)
    players = []

    class Watched(Recordings):
        possible = True

        def gradient(self, module, learnt, loss_of, inputs):
            if self._record is None:
                players.append(Player(module))
                self._record = players[-1]
            return super().gradient(module, learnt, loss_of, inputs)

    monkeypatch.setattr("burnish.train.loop.Recordings.on", lambda device, say=print, of="": Watched(None, say))
    burnish.fit(shapes, method="full", out=tmp_path / "played", **settings)
    assert any(one.played > 1 for one in players)
    one, two = ((tmp_path / name / "history.jsonl").read_text() for name in ("plain", "played"))
    assert without_seconds(one) == without_seconds(two)


def without_seconds(text):
    return [
        {key: value for key, value in json.loads(line).items() if "second" not in key} for line in text.splitlines()
    ]


card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@card
@pytest.mark.parametrize("objective", [Objective(), Objective(half=True), Objective(half=True, mixup=0.4, sam=0.05)])
def test_a_card_plays_the_steps_that_it_computes(objective):
    device, told = torch.device("cuda"), []
    found = []
    for recordings in (None, Recordings.on(device, told.append)):
        module = network().to(device)
        optimiser = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
        for number, images in enumerate((6, 5, 6, 5, 6)):
            views, labels = (one.to(device) for one in batch(number, images))
            step(module, optimiser, views, labels, objective, number, recordings=recordings)
        found.append(module.state_dict())
    assert not told
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4)


@card
def test_a_card_that_was_refused_a_recording_goes_on_computing():
    device, module = torch.device("cuda"), network().to("cuda")
    views, labels = (one.to(device) for one in batch(0))

    def loss_of(views, labels):
        views.sum().item()  # which a recording does not allow
        return nn.functional.cross_entropy(module(views), labels)

    told = []
    recordings = Recordings(lambda work: recorded.cuda_graph(work, device), told.append)
    assert recordings.gradient(module, list(module.parameters()), loss_of, (views, labels)) is None
    assert len(told) == 1 and torch.cuda.current_stream() == torch.cuda.default_stream()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
    assert step(module, optimiser, views, labels, Objective(), 0, recordings=recordings) > 0
    torch.rand(
        2, device=device
    )  # of a generator that waits for the end of the recording nothing can be drawn (torch before 2.12)


def test_a_torch_that_a_refused_recording_spoils_records_nothing(monkeypatch):
    monkeypatch.delenv(recorded.VARIABLE, raising=False)
    monkeypatch.setattr(Recordings, "refused", {})
    for version, records in (("2.10.0", False), ("2.11.1+cu128", False), ("2.12.0+cu130", True), ("2.14.1", True)):
        monkeypatch.setattr(torch, "__version__", version)
        assert (Recordings.on(torch.device("cuda"))._record is not None) == records
