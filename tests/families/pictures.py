"""Pictures for tiny models: pixels, grids and the tokens that stand for them, family by family."""

from collections.abc import Callable

import torch

PAD, IMAGE, BEGIN, END, BREAK, FIRST_WORD, VOCAB = 0, 4, 5, 6, 7, 16, 96

Pictures = list[list[tuple[int, int]]]
"""The images of each sample: kind (-1 small, -2 large where it can be) and seed of its pixels."""

Given = tuple[dict[int, list[int]], dict[str, torch.Tensor]]
"""Tokens of each kind of image, and what the forward pass takes for all images of a batch."""


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flat(tokens: int, size: int = 16, around: tuple[int, ...] = ()) -> Callable[[Pictures], Given]:
    """Pictures of one size, one row of ``pixel_values`` each."""

    def pictures(images: Pictures) -> Given:
        block = [*around[:1], *[IMAGE] * tokens, *around[1:]]
        pixels = [_noise(seed, 3, size, size) for row in images for _, seed in row]
        return {-1: block, -2: block}, {"pixel_values": torch.stack(pixels)}

    return pictures


def tiled(tokens: dict[int, int]) -> Callable[[Pictures], Given]:
    """LLaVA-NeXT and OneVision: an overview and tiles; newline vectors count as image tokens."""

    def pictures(images: Pictures) -> Given:
        flat = [image for row in images for image in row]
        sizes = torch.tensor([{-1: (16, 16), -2: (16, 32)}[kind] for kind, _ in flat])
        tiles = {-1: 2, -2: 3}
        pixels = torch.zeros(len(flat), max(tiles[kind] for kind, _ in flat), 3, 16, 16)
        for i, (kind, seed) in enumerate(flat):
            pixels[i, : tiles[kind]] = _noise(seed, tiles[kind], 3, 16, 16)
        blocks = {kind: [IMAGE] * n for kind, n in tokens.items()}
        return blocks, {"pixel_values": pixels, "image_sizes": sizes}

    return pictures


def qwen(images: Pictures) -> Given:
    """Qwen: patches of all images in one list, grids of 2 x 2 or 2 x 3 merged tokens."""
    grids = {-1: (1, 4, 4), -2: (1, 4, 6)}
    flat = [image for row in images for image in row]
    pixels = [_noise(seed, grids[kind][1] * grids[kind][2], 3 * 2 * 4 * 4) for kind, seed in flat]
    grid = torch.tensor([grids[kind] for kind, _ in flat])
    blocks = {k: [BEGIN, *[IMAGE] * (h * w // 4), END] for k, (_, h, w) in grids.items()}
    return blocks, {"pixel_values": torch.cat(pixels), "image_grid_thw": grid}


def idefics(images: Pictures) -> Given:
    """Idefics3: tiles per sample; -2 is two tiles with a row tag between them."""
    tiles = {-1: 1, -2: 2}
    own = [torch.cat([_noise(s, tiles[k], 3, 16, 16) for k, s in row]) for row in images]
    most = max(map(len, own))
    pixels = torch.zeros(len(own), most, 3, 16, 16)
    seen = torch.zeros(len(own), most, 16, 16, dtype=torch.bool)
    for b, part in enumerate(own):
        pixels[b, : len(part)], seen[b, : len(part)] = part, True
    blocks = {k: [*[BEGIN, *[IMAGE] * 4] * n, END] for k, n in tiles.items()}
    return blocks, {"pixel_values": pixels, "pixel_attention_mask": seen}


def pixtral(images: Pictures) -> Given:
    """Mistral3: 2 x 2 or 2 x 3 merged tokens, a break after each row but the last."""
    sizes = {-1: (16, 16), -2: (16, 24)}
    flat = [image for row in images for image in row]
    pixels = torch.zeros(len(flat), 3, 16, 24)
    for i, (kind, seed) in enumerate(flat):
        h, w = sizes[kind]
        pixels[i, :, :h, :w] = _noise(seed, 3, h, w)
    row = {k: [IMAGE] * (w // 8) for k, (_, w) in sizes.items()}
    blocks = {k: [*r, BREAK, *r, END] for k, r in row.items()}
    given = torch.tensor([sizes[kind] for kind, _ in flat])
    return blocks, {"pixel_values": pixels, "image_sizes": given}
