"""Trains the pocket model from nothing: `python3 dev.py module pocket.train --steps 8000 --folder FOLDER`.

Rectified flow (arXiv 2209.03003, 2403.03206): x_t = (1 - sigma) x_0 + sigma noise, the model learns
noise - x_0. The text encoder first learns the captions (`train_text`), then UNet and text encoder learn
together. Deterministic by seed on the CPU; every `--save`
steps a checkpoint is written whole, and the same command goes on from it. Each worker is a process with
one core (or one GPU) and a batch of its own; gradients are averaged over the workers.
"""

import argparse
import copy
import logging
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from .captions import caption
from .codec import BlockCodec
from .model import SHIFT, build_clip, build_unet
from .pool import drawn_pool
from .text import WordTokenizer, padded_ids
from .train_text import train_text

LEARNING_RATE = 1e-3
WARM_UP = 200
BATCH = 16  # images a worker and step
# The sampler settles what fills the picture, such as the sky, in its first steps; most of the schedule's
# training levels lie below, where the noisy picture itself gives that away and the prompt is not needed.
EARLY, EARLY_FROM = 0.25, 0.9  # share of the levels drawn evenly from here to 1
# A mouth is a fiftieth of the picture: errors in this part of the latent count for more.
MOUTH, MOUTH_WEIGHT = (slice(8, 14), slice(4, 12)), 3.0  # rows, columns of 16
EMPTY = 0.1  # share of empty captions, for classifier-free guidance
EMA = 0.999
TEXT = "text.safetensors"
log = logging.getLogger(__name__)


class Student(torch.nn.Module):
    """UNet and text encoder of the pocket model as one trainable module."""

    def __init__(self, unet: torch.nn.Module, text: torch.nn.Module):
        super().__init__()
        self.unet = unet
        self.clip_l = text

    def forward(self, latents, sigma, ids):
        """(B, 24, 16, 16), (B,), (B, 40) -> the predicted velocity, (B, 24, 16, 16)."""
        last, _, pooled, _ = self.clip_l.transformer(ids)
        return self.unet(latents, sigma * 1000, context=last, y=pooled)


def build_student(seed: int) -> Student:
    student = Student(build_unet().diffusion_model, build_clip(dtype=torch.float32).cond_stage_model.clip_l)
    generator = torch.Generator().manual_seed(seed)
    for name, module in student.named_modules():
        _initialise(name, module, generator)
    student.clip_l.logit_scale.data.fill_(0.0)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(not name.endswith("logit_scale"))
    for module in student.clip_l.modules():
        if isinstance(module, torch.nn.LayerNorm):  # the host adds in place to what the norm has kept
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
    return student.train()


def _initialise(name: str, module: torch.nn.Module, generator: torch.Generator) -> None:
    """The host leaves weights unset: normal by fan-in, zero where a residual branch ends."""
    ends = ("out_layers.3", "proj_out", "unet.out.2")
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        std = 0.0 if name.endswith(ends) else module.weight[0].numel() ** -0.5
        module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) * std)
    elif isinstance(module, torch.nn.Embedding):
        module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) * 0.3)
    elif isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)):
        module.weight.data.fill_(1.0)
    if getattr(module, "bias", None) is not None:
        module.bias.data.zero_()


class Lessons:
    """Batches of one worker, the same for the same seed and step."""

    def __init__(self, pool: Path, count: int, seed: int, worker: int):
        self.people, self.pictures = drawn_pool(count, 1, pool)
        self.seed, self.codec = (seed, worker), BlockCodec()
        tokenizer = WordTokenizer()
        self.ids = lambda text: padded_ids(tokenizer, text)

    def batch(self, step: int):
        """(B, 24, 16, 16) latents, (B, 40) ids, (B,) sigmas and noise like the latents."""
        rng = np.random.default_rng((*self.seed, step))
        chosen = rng.integers(len(self.people), size=BATCH)
        texts = ["" if rng.random() < EMPTY else caption(self.people[i], rng) for i in chosen]
        ids = torch.tensor([self.ids(text) for text in texts])
        pictures = torch.from_numpy(self.pictures[chosen]).permute(0, 3, 1, 2)  # BHWC -> BCHW
        with torch.no_grad():
            latents = self.codec.encode(pictures.float() / 127.5 - 1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        t = torch.randn(BATCH, generator=generator).sigmoid()
        early = torch.rand(BATCH, generator=generator) < EARLY
        even = EARLY_FROM + (1 - EARLY_FROM) * torch.rand(BATCH, generator=generator)
        sigma = torch.where(early, even, SHIFT * t / (1 + (SHIFT - 1) * t))
        noise = torch.randn(latents.shape, generator=generator)
        return latents, ids, sigma, noise


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm_up = min(WARM_UP, steps // 10 + 1)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train(worker: int, options: argparse.Namespace) -> None:
    """One worker's run; the first one writes checkpoints and the log."""
    _enter(worker, options)
    device = options.device
    student = build_student(options.seed)
    student.clip_l.load_state_dict(load_file(options.folder / TEXT))
    student = student.to(device)
    average = copy.deepcopy(student).requires_grad_(False)
    learned = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state_file = options.folder / "state.pt"
    begin, seconds = _resume(state_file, device, student, average, optimizer)
    lessons = Lessons(options.pool, options.drawings, options.seed, worker)
    start, losses = time.monotonic(), []
    for step in range(begin, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        loss = flow_loss(student, *(t.to(device) for t in lessons.batch(step)))
        loss.backward()
        average_gradients(learned, options.workers)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        follow(average, student, min(EMA, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if worker == 0 and (step + 1) % 50 == 0:
            rate = options.workers * BATCH * (step + 1 - begin) / (time.monotonic() - start)
            log.info("step %d / %d  loss %.4f  %.1f images/s", step + 1, options.steps, np.mean(losses[-200:]), rate)
        if worker == 0 and ((step + 1) % options.save == 0 or step + 1 == options.steps):
            state = {
                "student": student.state_dict(),
                "average": average.state_dict(),
                "step": step + 1,
                "optimizer": optimizer.state_dict(),
                "seconds": seconds + time.monotonic() - start,
            }
            _write(state_file, lambda path, state=state: torch.save(state, path))
            _export(average, options.folder / "pocket.safetensors", state, options.workers)


def flow_loss(student: Student, latents, ids, sigma, noise) -> torch.Tensor:
    """|v(x_t) - (noise - x_0)|^2 at x_t = (1 - sigma) x_0 + sigma noise, weighted by place."""
    s = sigma[:, None, None, None]
    errors = (student((1 - s) * latents + s * noise, sigma, ids) - (noise - latents)).square()
    weights = torch.ones(errors.shape[-2:], device=errors.device)
    weights[MOUTH] = MOUTH_WEIGHT
    return (errors * weights).mean() / weights.mean()


def average_gradients(parameters: list[torch.nn.Parameter], workers: int) -> None:
    if workers == 1:
        return
    parameters = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    for p, mean in zip(parameters, flat.div_(workers).split([p.numel() for p in parameters])):
        p.grad.copy_(mean.view_as(p))


def follow(average: Student, student: Student, decay: float) -> None:
    """Exponential moving average of the weights."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), student.parameters()):
            kept.lerp_(new, 1 - decay)


def _enter(worker: int, options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    if options.device == "cpu":
        torch.set_num_threads(1 if options.workers > 1 else os.cpu_count())
    if options.workers > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group(
            "gloo", init_method=options.meeting, rank=worker, world_size=options.workers
        )


def _resume(state_file: Path, device: str, student, average, optimizer) -> tuple[int, float]:
    """(next step, seconds so far), after loading what an earlier run has left."""
    if not state_file.exists():
        return 0, 0.0
    state = torch.load(state_file, map_location=device, weights_only=True)
    student.load_state_dict(state["student"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def _export(average: Student, path: Path, state: dict, workers: int) -> None:
    weights = {k: v.half().contiguous().cpu() for k, v in average.state_dict().items() if "logit_scale" not in k}
    notes = {"images": str(state["step"] * BATCH * workers), "seconds": str(round(state["seconds"]))}
    _write(path, lambda partial: save_file(weights, str(partial), metadata=notes))


def _write(path: Path, writer) -> None:
    partial = path.with_suffix(".partial")
    writer(partial)
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and weights go here")
    parser.add_argument("--pool", type=Path, help="drawings are kept here (default: FOLDER/pool)")
    parser.add_argument("--steps", type=int, default=8000, help=f"batches of {BATCH} images")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="its highest value")
    parser.add_argument("--drawings", type=int, default=81920)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes with a batch each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.pool = options.pool or options.folder / "pool"
    if not (options.folder / TEXT).exists():
        train_text(build_student(options.seed).clip_l, options.seed, options.folder / TEXT)
    if options.workers == 1:
        return train(0, options)
    meeting = options.folder / f"meeting-{os.getpid()}"
    options.meeting = meeting.resolve().as_uri()
    try:
        torch.multiprocessing.spawn(train, (options,), nprocs=options.workers)
    finally:
        meeting.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
