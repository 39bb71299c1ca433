"""Contact sheets of a model, unselected: one picture a prompt, first seed, in the file's order.

`python -m benchmarks.sheet --prompts benchmarks/prompts/unseen.txt --out sheet.png`
With `--data FOLDER` it first refuses any prompt that is a training caption, word for word.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from recipes.glyph.data.pictures import read_all_records

from sanakit import GenerateRequest, Pipeline
from sanakit.charts import save, sheet


def draw(
    pipeline: Pipeline, prompts: list[str], *, seed: int, steps: int, guidance: float | None
) -> list[np.ndarray]:
    """Give one picture a prompt, all at the same seed."""
    pictures = []
    for prompt in prompts:
        request = GenerateRequest(
            prompt=prompt, seed=seed, num_steps=steps, guidance_scale=guidance
        )
        pictures.append(pipeline.generate(request).pictures[0].pixels)
    return pictures


def seen(prompts: list[str], data: Path) -> list[str]:
    """Give the prompts that are captions of the training split, word for word."""
    records = read_all_records(data)
    captions = {c.lower() for r in records if r.split == "train" for c in r.captions}
    return [prompt for prompt in prompts if prompt.lower() in captions]


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="glyph")
    parser.add_argument("--prompts", type=Path, default=Path("benchmarks/prompts/unseen.txt"))
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--columns", type=int, default=8)
    arguments = parser.parse_args()
    prompts = arguments.prompts.read_text(encoding="utf-8").split("\n")
    prompts = [prompt for prompt in prompts if prompt]
    if arguments.data and (known := seen(prompts, arguments.data)):
        raise SystemExit(f"training captions: {', '.join(known)}")
    pipeline = Pipeline.load(arguments.model)
    pictures = draw(
        pipeline, prompts, seed=arguments.seed, steps=arguments.steps, guidance=arguments.guidance
    )
    starts = range(0, len(prompts), arguments.columns)
    rows = [("", np.stack(pictures[at : at + arguments.columns])) for at in starts]
    labels = {row: prompts[at : at + arguments.columns] for row, at in enumerate(starts)}
    title = f"{arguments.model}: unselected, seed {arguments.seed}"
    save(sheet(rows, labels, title=title, side=pictures[0].shape[0]), arguments.out)
    print(f"{arguments.out}: {len(prompts)} prompts at seed {arguments.seed}")


if __name__ == "__main__":
    main()
