"""The list of checks, most valuable first; benchmarks/README.md has the arithmetic of the times."""

from __future__ import annotations

from benchmarks.gpu.runner import Check

MATERIAL = Check("material", "The machine, and a checkpoint for it", "benchmarks.gpu.about:check", 100)
CHECKS = (
    Check("learning", "It learns, and what it learns is a LoRA", "benchmarks.gpu.learning:check", 140, 40),
    Check("speed", "Seconds a step, memory, gaps, start", "benchmarks.gpu.speed:check", 150, 40),
    Check("peers", "Beside diffusers + PEFT", "benchmarks.gpu.peers:check", 80, 30),
    Check("sd_scripts", "Beside sd-scripts", "benchmarks.gpu.peers:check_sd_scripts", 150, 60),
    Check("out_of_memory", "When memory is full", "benchmarks.gpu.out_of_memory:check", 120, 40),
    Check("pictures", "Pictures between steps", "benchmarks.gpu.pictures:check", 60, 30),
    Check("copies", "No copies of frozen weights", "benchmarks.gpu.copies:check", 90, 30),
)
