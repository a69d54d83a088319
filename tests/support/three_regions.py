"""Three regions' workers on real sockets, peers of each other, each with an application that records what arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.placement import Placement
from gateway.core.view import Ability, Cluster, PublicUrl, Region
from tests.support.dataplane import DataPlane, cluster, data_plane, template, view
from tests.support.facts import REGIONS
from tests.support.origin import Origin


@dataclass
class Three:
    planes: dict[str, DataPlane] = field(default_factory=dict)
    apps: dict[str, Origin] = field(default_factory=dict)

    def know(self, **ports: int) -> None:
        """Make every gateway know the others' hop listeners and its own application. `ports` (`ap_southeast_2=9`)
        take a hop listener's place, for a peer that a test plays itself, or that cannot be connected."""
        hops = {name: ports.get(name.replace("-", "_"), plane.hop_port) for name, plane in self.planes.items()}
        for here, plane in self.planes.items():
            clusters: dict[str, Cluster] = {"app": cluster("app", self.apps[here].port)}
            for name in REGIONS:
                if name != here:
                    clusters[f"region:{name}"] = cluster(f"region:{name}", hops[name], region=name)
            plane.swap(clusters=clusters, unreachable=frozenset(), probed=frozenset(), abilities={})

    def tell_dead(self, dead: frozenset[str]) -> None:
        """Every gateway learns whose application is dead."""
        for here, plane in self.planes.items():
            known = dict(plane.worker.view.clusters)
            known["app"] = cluster("app", self.apps[here].port, can_serve=here not in dead)
            others = [name for name in REGIONS if name != here]
            abilities = {(name, "app"): Ability.UNABLE if name in dead else Ability.ABLE for name in others}
            plane.swap(clusters=known, probed=frozenset(others), abilities=abilities)

    def count(self, region: str, metric: str, *labels: tuple[str, str]) -> int:
        worker = self.planes[region].worker
        return worker.stats.values[worker.stats.series(metric, labels)]


@asynccontextmanager
async def three_regions(tmp_path: Path, maps: Mapping[str, Iterable[Placement]]) -> AsyncIterator[Three]:
    three = Three()
    regions = {name: Region(name, PublicUrl("https", template("{tenant}." + name + ".test"), None)) for name in REGIONS}
    async with AsyncExitStack() as stack:
        for name in REGIONS:
            three.apps[name] = app = await Origin().start()
            stack.push_async_callback(app.stop)
        for name in REGIONS:
            snapshot = view(cluster("app", three.apps[name].port), region=name, regions=regions)
            plane = data_plane(tmp_path / name, snapshot, tuple(maps.get(name, ())))
            three.planes[name] = await stack.enter_async_context(plane)
        three.know()
        yield three
