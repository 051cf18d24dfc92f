"""What tests ask of a training step."""

from burnish.train.objective import backward


def gradient(*given, **more) -> float:
    """The gradient of the batch's mean loss, in place; returns the loss, nats."""
    return sum(backward(*given, **more).cpu().tolist())
