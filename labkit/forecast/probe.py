"""The measured half-minute: what each unit of the lessons' work costs on this machine, now.

The figures hold for the load that the machine had. They are kept in .labkit for an hour, so that a lesson which wants
a forecast does not measure again what `labkit forecast` has just measured.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from labkit.environment import EnvironmentReport, environment_report, peak_memory_mib
from labkit.evidence import utc_now
from labkit.forecast.units import Unit
from labkit.routes import Route

Listener = Callable[[str], None]


@dataclass(frozen=True)
class Probe:
    """`seconds` maps each unit to the seconds that one of it takes. Rates are per second, of float32 products, bytes
    copied within the device's memory, and bytes flushed to the disk; memory is MiB at its peak after each part.

    `load` is the mean number of running processes in the minute before, `took` the seconds of the whole.
    """

    machine: str
    device: str
    cores: int
    torch: str
    written: str
    load: float
    took: float
    flops: float
    memory_bytes: float
    disk_bytes: float
    seconds: dict[str, float]
    memory_mib: dict[str, float]

    def cost(self, unit: Unit) -> float:
        return self.seconds[unit.name]


def machine_name(report: EnvironmentReport) -> str:
    return f"{report.cpu}, {report.gpu}" if report.cuda else report.cpu


def measure(route: Route, told: Listener = lambda text: None) -> Probe:
    """Measure this machine with the sizes of `route`; `told` hears what is measured next.

    Raises LabError when a part cannot run here, as its own command would.
    """
    from labkit.forecast import answering, learning, machine

    started, load, report = time.perf_counter(), psutil.getloadavg()[0], environment_report()
    costs: dict[Unit, float] = {Unit.WAIT: 1.0, Unit.PROBE: 1.0}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
        told("arithmetic, memory, disk")
        rates = machine.matrix_flops(report.device), machine.memory_bandwidth(report.device)
        disk = machine.disk_bandwidth(Path(scratch))
        costs |= {Unit.WRITE: machine.pack_write(Path(scratch)), Unit.FIGURE: machine.figure()}
    told("starting processes")
    costs[Unit.KERNEL], memory["kernel"] = machine.process_start(machine.KERNEL_IMPORTS)
    costs[Unit.PROCESS], memory["process"] = machine.process_start(machine.PROCESS_IMPORTS)
    told("training steps")
    costs |= learning.training_costs(report.device, route.batch_size)
    memory["training"] = peak_memory_mib()
    told("answers")
    costs |= answering.case_costs(report.device)
    memory["answers"] = peak_memory_mib()
    told("a server")
    server = answering.server_cost(report.device)
    costs |= {Unit.SERVER: server.start, Unit.CASE_HTTP: server.case}
    memory["server"] = server.memory_mib
    told("fine-tuning steps")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes: its 4-bit kernel names no gradient of its own, and has none
        costs |= learning.tuning_costs(report.device)
    memory["tuning"] = peak_memory_mib()
    return Probe(
        machine=machine_name(report),
        device=report.device,
        cores=report.cores,
        torch=report.torch,
        written=utc_now(),
        load=round(load, 2),
        took=round(time.perf_counter() - started, 1),
        flops=rates[0],
        memory_bytes=rates[1],
        disk_bytes=disk,
        seconds={unit.name: cost for unit, cost in costs.items()},
        memory_mib={name: round(size, 1) for name, size in memory.items()},
    )
