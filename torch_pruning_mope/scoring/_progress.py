"""Progress bar of a scoring run."""

import time
from collections.abc import Mapping, Sequence
from operator import itemgetter

from tqdm import tqdm

from ..encoder import TowerName
from ..towers import Unit


class Progress:
    """A progress bar: units done, queries per second, time left, the units missed least and most so far."""

    def __init__(
        self, units: Sequence[Unit], queries: Mapping[TowerName, int], layers: Mapping[TowerName, int], *, show: bool
    ) -> None:
        self._queries, self._layers = queries, layers
        self._count, self._done, self._run = len(units), 0, 0
        self._least: tuple[float, Unit] | None = None
        self._most: tuple[float, Unit] | None = None
        self._began = time.perf_counter()
        self._bar = tqdm(
            total=sum(self._work(unit) for unit in units),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            desc=f"MoPE 0/{self._count} units",
            disable=not show,
            delay=2,
            leave=False,
            dynamic_ncols=True,
        )
        self.close = self._bar.close

    def evaluated(self, unit: Unit) -> None:
        """Counts one evaluation of a unit."""
        self._run += self._queries[unit.tower]

    def scored(self, unit: Unit, loss: float) -> None:
        """Counts a finished unit, with the metric's loss without it (and those that go before it)."""
        self._done += 1
        self._least = min(self._least or (loss, unit), (loss, unit), key=itemgetter(0))
        self._most = max(self._most or (loss, unit), (loss, unit), key=itemgetter(0))
        rate = self._run / max(1e-9, time.perf_counter() - self._began)
        least, most = (f"{found[1]} ({100 * found[0]:+.2f})" for found in (self._least, self._most))
        self._bar.set_description_str(f"MoPE {self._done}/{self._count} units", refresh=False)
        self._bar.set_postfix_str(f"{rate:.0f} queries/s, least missed {least}, most {most}", refresh=False)
        self._bar.update(self._work(unit))

    def _work(self, unit: Unit) -> int:
        """Layers that the unit's evaluation runs, times the inputs."""
        return (self._layers[unit.tower] - unit.layer) * self._queries[unit.tower]
