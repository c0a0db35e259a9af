"""Loss scaling for float16, whose smallest numbers are larger than many gradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass

START = 2.0**16
GROWTH_INTERVAL = 2000
"""Updates without an overflow after which a larger scale is tried (Micikevicius et al. 2018, section 3.2)."""


@dataclass
class LossScale:
    """By what the loss is multiplied before the backward pass, and the gradients divided after it: a power of two.

    It is halved whenever a gradient overflows and doubled after `GROWTH_INTERVAL` updates without, as
    `torch.amp.GradScaler` does. The attempt that overflowed is thrown away and begun again, so that no rows are lost.
    """

    value: float = START
    held: int = 0
    """Updates since it last changed."""

    def lower(self) -> bool:
        """Halve it after an overflow; False where it is 1 already, and something else than the scale is too large."""
        if self.value <= 1.0:
            return False
        self.value, self.held = self.value / 2, 0
        return True

    def hold(self) -> None:
        """Count an update whose gradients were finite."""
        self.held += 1
        if self.held >= GROWTH_INTERVAL:
            self.value, self.held = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps; `LossScale(**state)` is the same again."""
        return asdict(self)
