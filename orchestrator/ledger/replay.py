"""Whether a step that was trained again came out as it did the first time.

Pure. Owns what must be equal to the last bit, what may differ and by how much, and the words for a
difference. Must not import the store.
"""

from __future__ import annotations

from dataclasses import dataclass

DETERMINISTIC = ", deterministic"  # how the numerics key of such a trainer ends


@dataclass(frozen=True)
class Telling:
    """What an attempt told of a step; a loss or a norm that is not a number is None."""

    attempt: int
    loss: float | None
    grad_norm: float | None
    batch_hash: str


def exact(key: str | None, other: str | None) -> bool:
    """Whether trainers with these numerics keys must tell the same to the last bit."""
    return key is not None and key == other and key.endswith(DETERMINISTIC)


def difference(first: Telling, again: Telling, alike: bool, envelope: float) -> str | None:
    """How `again` differs from `first` where it must not; None where it does not.

    The batch follows from the data plan and the step alone, whatever trains it. Loss and gradient
    norm must be equal where the two are `alike`; elsewhere losses may lie `envelope` apart, as a
    share of the first.
    """
    of = f"of attempt {first.attempt}"
    if first.batch_hash != again.batch_hash:
        return f"its batch is {again.batch_hash}, that {of} was {first.batch_hash}"
    if alike:
        for name, old, new in (
            ("loss", first.loss, again.loss),
            ("gradient norm", first.grad_norm, again.grad_norm),
        ):
            if old != new:
                return f"its {name} is {_number(new)}, that {of} was {_number(old)}"
        return None
    if first.loss is None or again.loss is None:
        apart = first.loss is not again.loss
    else:
        apart = abs(again.loss - first.loss) > envelope * abs(first.loss)
    if not apart:
        return None
    return (
        f"its loss is {_number(again.loss)}, that {of} was {_number(first.loss)},"
        f" which is more than {100 * envelope:.4g}% away"
    )


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.9g}"  # all digits of a float32
