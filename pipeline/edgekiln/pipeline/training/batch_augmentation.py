"""What ``augment_picture`` makes of each picture of a batch, for the whole batch at once: the same bits, sooner.

For small pictures the 40 calls that torchvision makes for each take longer than what they compute. Here what is random
is drawn for all pictures in arrays, and colours are changed for many at a time; cropping alone is done one by one.

A picture's numbers are those that torch's generator draws after its seed, read as torchvision reads them: MT19937 by
numpy's ``RandomState``, whose streams never change (NEP 19).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from edgekiln.pipeline.recipe import Augmentation
from edgekiln.pipeline.training.augmentation import augment_picture
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.spec import Frames

__all__ = ["BatchAugmentation"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_TRIES = 10  # boxes that RandomResizedCrop draws before it takes the middle
_RATIOS = (3 / 4, 4 / 3)  # of width to height, its default
_BYTES_RESIZED = "AVX" in torch.backends.cpu.get_cpu_capability()
"""Whether torch resizes bytes as they are; elsewhere torchvision takes float32, and its wrapper costs half as much as a
small resizing itself."""


class BatchAugmentation:
    """Changes a batch's pictures, each as ``augment_picture`` would after ``torch.manual_seed`` of its seed."""

    def __init__(self, settings: Augmentation, contract: Contract) -> None:
        self._settings, self._height, self._width = settings, contract.height, contract.width
        jitter = v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)
        ranges = {name: getattr(jitter, name) for name in _CHANGES}
        self._ranges: dict[str, tuple[float, float]] = {k: v for k, v in ranges.items() if v is not None}
        # RandAugment chooses among fourteen operations for each picture, so there is nothing to do for many at once.
        self._one_by_one = augment_picture(settings, contract) if settings.randaugment else None

    def __call__(self, frames: Frames, seeds: Sequence[int]) -> Tensor:
        """uint8 (B, 3, H, W), whose channels come last in memory.

        Args:
            frames: uint8 (B, H, W, 3).
            seeds: one for each, of up to 64 bits.
        """
        batch = np.empty((len(seeds), self._height, self._width, 3), np.uint8)
        if self._one_by_one is not None:
            for place, (frame, seed) in enumerate(zip(frames, seeds, strict=True)):
                # The generator alone: torch.manual_seed would seed the GPUs too, for every picture.
                torch.default_generator.manual_seed(seed)
                picture = self._one_by_one(torch.from_numpy(np.array(frame)).permute(2, 0, 1))
                batch[place] = picture.permute(1, 2, 0).numpy()
        else:
            numbers = _Numbers(seeds)
            self._change_shapes(frames, numbers, batch)
            if self._ranges:
                self._change_colours(numbers, batch)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _change_shapes(self, frames: Frames, numbers: _Numbers, batch: Frames) -> None:
        boxes, mirrored = self._draw_boxes(numbers), np.zeros(len(batch), bool)
        if self._settings.horizontal_flip:
            mirrored = numbers.uniform(0, 1) < 0.5
        chosen = zip(frames, boxes.tolist(), mirrored.tolist(), strict=True)
        for place, (frame, (top, left, height, width), mirror) in enumerate(chosen):
            piece = torch.from_numpy(np.array(frame[top : top + height, left : left + width]))  # without gaps
            picture = self._resize(piece)
            batch[place] = (picture.flip(1) if mirror else picture).numpy()

    def _resize(self, piece: Tensor) -> Tensor:
        """uint8 (h, w, 3) to (H, W, 3), as ``functional.resize_image`` does it."""
        size = [self._height, self._width]
        if not _BYTES_RESIZED:
            resized: Tensor = functional.resize_image(piece.permute(2, 0, 1), size, antialias=True)
            return resized.permute(1, 2, 0)
        if list(piece.shape[:2]) == size:
            return piece
        one = piece[None].permute(0, 3, 1, 2)
        return nn.functional.interpolate(one, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)

    def _draw_boxes(self, numbers: _Numbers) -> Integers:
        """int64 (B, 4): top, left, height and width of what RandomResizedCrop keeps."""
        high, wide = self._height, self._width
        if self._settings.crop_scale >= 1:
            return np.tile([0, 0, high, wide], (len(numbers), 1))
        middle = min(high, round(wide / _RATIOS[0])), min(wide, round(high * _RATIOS[1]))
        boxes = np.tile([(high - middle[0]) // 2, (wide - middle[1]) // 2, *middle], (len(numbers), 1))
        lowest, highest = torch.tensor(_RATIOS).log().tolist()
        waiting = np.arange(len(numbers))
        for _ in range(_TRIES):
            area = high * wide * numbers.uniform(self._settings.crop_scale, 1, waiting)
            ratio = np.exp(numbers.uniform(lowest, highest, waiting).astype(np.float32)).astype(np.float64)
            heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
            widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
            fits = (heights > 0) & (heights <= high) & (widths > 0) & (widths <= wide)
            done, heights, widths = waiting[fits], heights[fits], widths[fits]
            tops = numbers.below(high - heights + 1, done)
            boxes[done] = np.stack([tops, numbers.below(wide - widths + 1, done), heights, widths], axis=1)
            waiting = waiting[~fits]
            if not len(waiting):
                break
        return boxes

    def _change_colours(self, numbers: _Numbers, batch: Frames) -> None:
        """Change frames in place, each by factors and in an order of its own."""
        orders = numbers.order(len(_CHANGES)).tolist()
        factors = {name: numbers.uniform(*self._ranges[name]) for name in _CHANGES if name in self._ranges}
        alike: dict[tuple[str, ...], list[int]] = {}
        for row, order in enumerate(orders):
            known = (list(_CHANGES)[number] for number in order)
            alike.setdefault(tuple(name for name in known if name in factors), []).append(row)
        for names, rows in alike.items():
            pixels = torch.from_numpy(batch[rows]).permute(0, 3, 1, 2).float()
            for name in names:
                _CHANGES[name](pixels, factors[name][rows].tolist())
                pixels.clamp_(0, 255).floor_()  # what a byte would keep
            batch[rows] = pixels.permute(
                0, 2, 3, 1
            ).numpy()  # numpy converts to bytes in a quarter of torch's time


class _Numbers:
    """Random numbers of a batch. Each picture has a row, and its own place in it."""

    _MOST = 2 * _TRIES + 2 + 1 + 3 + 4  # boxes, the place of one, mirrored or not, an order, factors

    def __init__(self, seeds: Sequence[int]) -> None:
        self._rows = np.empty((len(seeds), self._MOST), np.int64)
        self._next, self._all = np.zeros(len(seeds), np.int64), np.arange(len(seeds))
        bits = np.random.MT19937()
        random = np.random.RandomState(bits)
        for row, seed in zip(self._rows, seeds, strict=True):
            random.seed(seed & 0xFFFFFFFF)  # torch takes as many bits
            row[:] = bits.random_raw(self._MOST)

    def __len__(self) -> int:
        return len(self._rows)

    def _draw(self, who: Integers | None) -> Integers:
        """The next number of each picture ``who``, or of all."""
        who = self._all if who is None else who
        found = self._rows[who, self._next[who]]
        self._next[who] += 1
        return found

    def uniform(self, low: float, high: float, who: Integers | None = None) -> Floats:
        """Values of float32 in [low, high), of 24 bits each, rounded once."""
        start, end = np.float32(low), np.float32(high)
        shares = (self._draw(who) & 0xFFFFFF) * 2.0**-24
        return (shares * float(end - start) + float(start)).astype(np.float32).astype(np.float64)

    def below(self, limits: Integers | int, who: Integers | None = None) -> Integers:
        """Whole numbers from 0 to below ``limits``."""
        return self._draw(who) % limits

    def order(self, count: int) -> Integers:
        """int64 (B, count): the numbers below ``count`` in random order, as ``torch.randperm`` shuffles them."""
        order = np.tile(np.arange(count), (len(self), 1))
        for first in range(count - 1):
            other = first + self.below(count - first)
            order[self._all, first], order[self._all, other] = (
                order[self._all, other],
                order[self._all, first],
            )
        return order


def _brighten(pixels: Tensor, factors: Sequence[float]) -> None:
    pixels.mul_(torch.tensor(factors)[:, None, None, None])


def _change_contrast(pixels: Tensor, factors: Sequence[float]) -> None:
    _blend(pixels, _grayscale(pixels).mean((1, 2, 3), keepdim=True), factors)


def _saturate(pixels: Tensor, factors: Sequence[float]) -> None:
    _blend(pixels, _grayscale(pixels), factors)


def _turn_hue(pixels: Tensor, factors: Sequence[float]) -> None:
    for picture, factor in zip(pixels, factors, strict=True):
        picture.copy_(functional.adjust_hue_image(picture.to(torch.uint8), factor))


_CHANGES: dict[str, Any] = {  # in the order of ColorJitter's numbers for them
    "brightness": _brighten,
    "contrast": _change_contrast,
    "saturation": _saturate,
    "hue": _turn_hue,
}


def _grayscale(pixels: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 with torchvision's coefficients, whole numbers in float32 (B, 1, H, W)."""
    red, green, blue = pixels.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def _blend(pixels: Tensor, others: Tensor, factors: Sequence[float]) -> None:
    """factor * pixels + (1 - factor) * others.

    The sum is taken picture by picture: torch rounds once where it adds a number times a tensor. A tensor of factors
    would be multiplied first and added then, which rounds twice.
    """
    _brighten(pixels, factors)
    for picture, other, factor in zip(pixels, others, factors, strict=True):
        picture.add_(other, alpha=1.0 - factor)
