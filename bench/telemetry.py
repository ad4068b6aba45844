"""The cost of metrics and traces for an uncontended ``with lock``, including while they are off."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from tests.support.server import Server

#: Name → the program's preparation before it measures.
VARIANTS = {
    "never imported": "",
    "imported and off": "from score.distlock import telemetry",
    "Prometheus": """
from prometheus_client import CollectorRegistry
from score.distlock import telemetry
telemetry.prometheus(conf, CollectorRegistry())
""",
    "OpenTelemetry, metrics and traces": """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from score.distlock import telemetry
telemetry.instrument(
    conf,
    meter_provider=MeterProvider([InMemoryMetricReader()]),
    tracer_provider=TracerProvider(),
)
""",
}

PROGRAM = """
import sys, time, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1m')
{prepare}
lock = conf.get(sys.argv[2])
def cycles(seconds):
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        for _ in range(20):
            with lock:
                pass
        count += 20
    return count / spent
cycles(0.2)
print(cycles(float(sys.argv[3])))
"""


def measure(server: Server, rounds: int, seconds: float) -> dict[str, Any]:
    """The duration of a cycle relative to a program that never imports telemetry."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        names = list(VARIANTS)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            program = PROGRAM.format(prepare=VARIANTS[name])
            output = subprocess.run(
                [sys.executable, "-c", program, server.url(), name, str(seconds)],
                capture_output=True,
                text=True,
                check=True,
            )
            rates[name].append(float(output.stdout))
    base = rates.pop("never imported")
    found: dict[str, Any] = {}
    for name, measured in rates.items():
        times = [one / other for one, other in zip(base, measured, strict=True)]
        found[f"telemetry {name}: a cycle takes … times as long"] = {
            "median": statistics.median(times),
            "least": min(times),
            "most": max(times),
        }
    return found
