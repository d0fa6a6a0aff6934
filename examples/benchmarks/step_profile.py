"""What the default step on scenes does: operations, waits for the device, and the share of time in which it is idle."""

from __future__ import annotations

from collections import Counter

import record
import torch
from torch.profiler import ProfilerActivity, profile

from ccaco_cli.core import config_io, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.training import parallel, step
from ccaco_cli.core.training.optim import adamw
from ccaco_cli.core.types import PairBatch

options = record.arguments(__doc__, steps=20, torchcompile=0)
device = runtime.device(options.device)
config = config_io.override(RunConfig(), {"optim.batch_size": 16} if options.quick else {})
steps, batch_size = 2 if options.quick else options.steps, config.optim.batch_size
torch.manual_seed(0)
aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
aligner.to(device).train()
if options.torchcompile:
    aligner.compile_towers(config.optim.compile_mode)
losses, optimizer = step.StepLosses(aligner, config.loss), adamw(aligner, config.optim)
size = towers["image"].input_size or (64, 64)
text = towers["text"].preprocess([f"a red cat and {n} blue dogs sleep on a mat" for n in range(batch_size)])
rows = torch.arange(batch_size)
batch = PairBatch(
    {"pixels": torch.randint(256, (batch_size, 3, *size), dtype=torch.uint8)},
    {name: text[name] for name in ("ids", "mask")},
    rows,
    rows,
    rows * 0,
)
if device.type == "cuda":
    batch = batch.pin_memory()
generator = torch.Generator()
trained = [p for p in aligner.parameters() if p.requires_grad]


def update() -> None:
    """One step of the training loop, whose numbers stay on the device."""
    with runtime.autocast(config.optim.precision, device):
        total = losses(batch.to(device), config.loss.beta, generator)["total"]
    total.backward()
    parallel.clip_gradients(trained, config.optim.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run() -> None:
    for _ in range(steps):
        update()


for _ in range(2 if options.quick else 5):  # memory is reserved, kernels are chosen
    update()
spent = record.seconds(run, options.device) / steps
activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
with profile(activities=activities) as profiler:
    record.seconds(run, options.device)
events = profiler.events()
names = Counter(event.name for event in events if event.device_type == torch.autograd.DeviceType.CPU)
kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
on_device = sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / steps
operations = sum(count for name, count in names.items() if name.startswith("aten::")) / steps
waits = {name: names[name] / steps for name in ("cudaStreamSynchronize", "aten::_local_scalar_dense", "aten::nonzero")}
facts = [
    f"{record.time_text(spent)} a step of {batch_size} pairs; {operations:,.0f} operations",
    "a step: " + ", ".join(f"{count:.1f} {name}" for name, count in waits.items()),
]
if kernels:
    facts.append(
        f"{len(kernels) / steps:,.0f} kernels and copies take {record.time_text(on_device)}: the GPU is idle for "
        f"{max(0.0, 100 * (1 - on_device / spent)):.0f} % of a step without the profiler"
    )
slowest = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total or -event.self_cpu_time_total)
facts += [
    f"{event.key}: {event.count / steps:,.0f} times, "
    f"{record.time_text((event.self_device_time_total or event.self_cpu_time_total) / 1e6 / steps)}"
    for event in slowest[:8]
]
record.finish("Profile of the default step", [], options, facts=facts)
