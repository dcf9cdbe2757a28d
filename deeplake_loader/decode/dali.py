"""Images and clips decoded in batches by NVIDIA DALI, on a CUDA device (nvJPEG, NVDEC) or, with the same operators, on
the CPU. The only module that imports ``nvidia.dali``, and not before it is used: the import takes a second.

DALI's dynamic mode (``nvidia.dali.experimental.dynamic``) is used because a call that fails leaves the next one alone.
What it must not decide is decided here or before: frame numbers and crops are ours, resizing is antialiased as ours is,
and a frame that DALI would make up is found by its colour.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from deeplake_loader.codecs.containers import Source
from deeplake_loader.codecs.gops import unpack
from deeplake_loader.codecs.headers import read_jpeg, sniff_image
from deeplake_loader.codecs.info import MAX_PIXELS, MediaInfo
from deeplake_loader.decode import cpu, nvdec
from deeplake_loader.decode.forks import check_process, note_use
from deeplake_loader.decode.normalize import to_bytes
from deeplake_loader.decode.slots import size_of
from deeplake_loader.decode.transforms import Draw, Image, Size, Video, crop_box
from deeplake_loader.decode.video import chosen_frames
from deeplake_loader.errors import DecodeError, DimensionError, InputError

log = logging.getLogger("deeplake_loader.decode")

Data: TypeAlias = Source
Decoded: TypeAlias = "torch.Tensor | DecodeError"
Slots: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"
"""Room for each item: a batch, or places in one."""

CHUNK_BYTES = 1 << 30
"""Decoded pictures of one call to DALI, before they are resized: DALI's memory grows to its largest call and stays."""

MAX_ITEM_BYTES = 4 << 30
"""Decoded pictures of one item; DALI holds all frames of a clip at their full size, the CPU engine one at a time."""

_MOST_THREADS = 16  # each takes 24 MiB of host and device memory on a GPU

_FILL = (1, 254, 3)
"""The colour DALI gives frames that it does not find; the default, black, could not be told from a dark scene."""

_FILTERS = {
    "nearest": "INTERP_NN", "bilinear": "INTERP_LINEAR", "bicubic": "INTERP_CUBIC", "lanczos": "INTERP_LANCZOS3",
}  # fmt: skip
"""DALI's filters that are Pillow's; it has none like "area"."""

_CPU_CODECS = frozenset(("vp8", "vp9", "mjpeg"))


def _import_dali() -> tuple[Any, Any]:
    """(dynamic mode, types)."""
    try:
        import nvidia.dali.experimental.dynamic as dynamic
        from nvidia.dali import types
    except ImportError as error:
        raise InputError(
            f"engine 'dali' needs NVIDIA DALI, which cannot be imported ({error}); install it with "
            "pip install 'deeplake-loader[dali]' (CUDA 12: [dali-cuda12]), or use engine='auto'"
        ) from error
    return dynamic, types


class _Host:
    """Where batches end up: the CPU's memory. Calls return when their results are there."""

    kind: Literal["cpu", "gpu"] = "cpu"
    capability: tuple[int, int] | None = None
    device = torch.device("cpu")

    def context(self, dynamic: Any, num_threads: int) -> Any:
        return dynamic.EvalContext(num_threads=num_threads)

    @contextmanager
    def scope(self) -> Iterator[None]:
        yield

    def finish(self) -> None:
        """Waits for what was begun in the scope."""


class _Cuda(_Host):
    """A CUDA device and the stream of torch that DALI's work and the copies out of its memory are put on.

    DALI's memory is not torch's: no stream of torch's can be told to wait before DALI takes it back. So results are
    copied into tensors of torch's on the very stream that made them, and that stream has ended before DALI's are let
    go (19 MB take about 5 us to copy).
    """

    kind = "gpu"

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        self.capability = torch.cuda.get_device_capability(self.device)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def context(self, dynamic: Any, num_threads: int) -> Any:
        return dynamic.EvalContext(num_threads=num_threads, device_id=self.device.index, cuda_stream=self._stream)

    @contextmanager
    def scope(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def finish(self) -> None:
        self._stream.synchronize()


class DaliDecoder:
    """Decodes JPEG images and clips, whole batches at a time; several threads may call it, one is served at once.

    Results are uint8 in the transform's layout, the first step towards its floats (`decode.normalize`), as the CPU
    engine gives them: decoded JPEG pixels on the CPU equal Pillow's; resized ones differ from the CPU engine's by
    0.6 grey levels at most in the mean and up to 30 at sharp edges; where that engine shrinks a JPEG while it
    decodes it, by 1.5 in the mean over photographs and up to 7 for one of fine texture; RGB from video by 2 in the
    mean. An item that DALI does not decode is decoded by the CPU engine, so what is refused is the same; damage
    that libjpeg only warns of is refused by that engine alone.

    Args:
        device: "gpu" or "cpu".
        device_id: of the CUDA device.
        num_threads: DALI's own threads; by default one per core, at most 16.

    Raises:
        InputError: DALI cannot be imported or started, or this process was forked from one that uses it.
    """

    def __init__(
        self, device: Literal["gpu", "cpu"] = "gpu", device_id: int = 0, *, num_threads: int | None = None
    ) -> None:
        check_process()
        self._dali, self._types = _import_dali()
        try:
            self._place = _Cuda(device_id) if device == "gpu" else _Host()
            self._context = self._place.context(self._dali, num_threads or min(_MOST_THREADS, _cores()))
        except (RuntimeError, ValueError, AssertionError) as error:  # no driver, or one older than DALI's CUDA
            raise InputError(f"DALI cannot be started on device {device!r} {device_id}: {error}") from error
        note_use()
        self._lock = threading.Lock()
        self._told = False

    def takes(self, transform: Image | Video) -> bool:
        """Whether DALI resizes as the transform asks."""
        return transform.interpolation in _FILTERS

    def takes_image(self, data: Data) -> bool:
        """Whether DALI decodes the image better than the CPU engine: JPEG; the other formats have no GPU decoder."""
        return isinstance(data, bytes | memoryview) and sniff_image(data) == "jpg"

    def takes_video(self, data: Data, info: MediaInfo) -> bool:
        """Whether DALI decodes the clip here, and numbers its frames as they were counted at insert."""
        if not isinstance(data, bytes | memoryview) or info.rotation or not (info.num_frames and info.width):
            return False
        table = unpack(info.gops) if info.gops else None
        if table is not None and table.times[0] < 0:  # DALI counts no frame that is shown before 0
            return False
        capability = self._place.capability
        if capability is None:
            return info.codec in _CPU_CODECS
        return table is not None and nvdec.decodes(capability, info)  # it finds frames on a GPU by their times

    def decode_images(
        self,
        items: Sequence[Data],
        transform: Image,
        draws: Sequence[Draw | None],
        out: Slots | None = None,
    ) -> list[Decoded]:
        """One tensor or DecodeError per image, in their order.

        Args:
            out: uint8 tensors to decode into, which are then the results.
        """
        job = _Job(self, items, [MediaInfo("image")] * len(items), transform, draws, out)
        able = self.takes(transform)
        sizes = {i: size for i, data in enumerate(items) if able and (size := _jpeg_size(data)) is not None}
        job.run({i: 3 * size[0] * size[1] for i, size in sizes.items()}, partial(self._images, job, transform))
        return job.results

    def decode_videos(
        self,
        items: Sequence[Data],
        infos: Sequence[MediaInfo],
        transform: Video,
        draws: Sequence[Draw | None],
        out: Slots | None = None,
    ) -> list[Decoded]:
        """One tensor or DecodeError per clip, in their order; ``infos`` as they were measured at insert."""
        job = _Job(self, items, infos, transform, draws, out)
        numbers: dict[int, list[int]] = {}
        weights: dict[int, int] = {}
        for i, info in enumerate(infos):
            if self.takes(transform) and self.takes_video(items[i], info):
                try:
                    chosen = chosen_frames(info, transform, draws[i])
                except DimensionError:  # the CPU engine says so
                    continue
                if chosen is not None:
                    numbers[i] = chosen
                    weights[i] = 3 * (info.width or 0) * (info.height or 0) * (len(chosen) + 1)
        job.run(weights, partial(self._videos, job, transform, numbers))
        return job.results

    @contextmanager
    def active(self) -> Iterator[None]:
        """DALI's context and the device's stream, for one caller."""
        check_process()
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(self._place.scope())
            stack.enter_context(self._context)
            # results or their errors are there when a call returns, not when somebody asks for them
            stack.enter_context(self._dali.EvalMode.sync_cpu)
            yield

    @property
    def device(self) -> torch.device:
        """Where results are."""
        return self._place.device

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """Room for a batch of results. On a GPU it is memory of the stream that decodes: who reads it on another one
        records it there (``Tensor.record_stream``) before letting it go."""
        with self._place.scope():
            return torch.empty(tuple(shape), dtype=torch.uint8, device=self._place.device)

    @contextmanager
    def placing(self) -> Iterator[None]:
        """For whatever torch does with results: on a GPU on the stream that decodes, and done when the block ends."""
        with self._place.scope():
            yield
            self._place.finish()

    def tell(self, place: int, error: Exception) -> None:
        """Says, once, that DALI left an item to the CPU engine; one alone may be damaged, all of them a bad driver."""
        if not self._told:
            self._told = True
            reason = error.__cause__ or error
            log.warning("DALI did not decode item %d of a batch; such items are decoded on the CPU: %s", place, reason)

    def _images(self, job: _Job, transform: Image, places: Sequence[int]) -> None:
        encoded = self._batch([job.bytes(i) for i in places])
        pictures = self._dali.decoders.image(encoded, device=self._place.kind, output_type=self._types.RGB)
        sizes = [(shape[0], shape[1]) for shape in pictures.shape]
        pixels = self._resized(pictures, sizes, transform, [job.draws[i] for i in places])
        for i, picture in zip(places, _tensors(pixels), strict=True):
            job.keep(i, _image_layout(picture, transform))
        self._place.finish()  # while DALI's batches are held

    def _videos(self, job: _Job, transform: Video, numbers: dict[int, list[int]], places: Sequence[int]) -> None:
        # one frame past the end tells whether DALI counts frames as we do
        wanted = [np.array([*numbers[i], job.infos[i].num_frames], np.int32) for i in places]
        clips = self._dali.decoders.video(
            self._batch([job.bytes(i) for i in places]),
            device=self._place.kind,
            frames=self._batch(wanted),
            fill_value=list(_FILL),
            affine=False,  # or the threads of every process of a machine are tied to the same cores
        )
        whole = [_is_whole(clip) for clip in _tensors(clips)]
        sizes = [(shape[1], shape[2]) for shape in clips.shape]
        resized = self._resized(clips, sizes, transform, [job.draws[i] for i in places])
        for i, clip, good in zip(places, _tensors(resized), whole, strict=True):
            if good and clip.shape[0] == len(numbers[i]) + 1:
                job.keep(i, _video_layout(clip[:-1], transform))
            else:
                self.tell(i, ValueError("the frames that DALI finds in the clip are not those counted at insert"))
        self._place.finish()  # while DALI's batches are held

    def _resized(
        self, pictures: Any, sizes: Sequence[Size], transform: Image | Video, draws: Sequence[Draw | None]
    ) -> Any:
        """The pictures (or clips) cropped, mirrored and resized: DALI mirrors where a region ends before its start."""
        asked = size_of(transform)
        starts, ends = [], []
        for (height, width), draw in zip(sizes, draws, strict=True):
            (x0, y0, x1, y1), mirrored = crop_box(transform, width, height, asked or (height, width), draw)
            starts.append(np.array([y0, x1 if mirrored else x0], np.float32))
            ends.append(np.array([y1, x0 if mirrored else x1], np.float32))
        return self._dali.resize(
            pictures,
            size=self._batch([np.array(asked or size, np.float32) for size in sizes]),
            roi_start=self._batch(starts),
            roi_end=self._batch(ends),
            interp_type=getattr(self._types, _FILTERS[transform.interpolation]),
            antialias=transform.antialias,
            device=self._place.kind,
        )

    def _batch(self, arrays: Sequence[np.ndarray[Any, np.dtype[Any]]]) -> Any:
        return self._dali.as_batch(list(arrays))


class _Job:
    """The items of one call and what has become of them."""

    def __init__(
        self,
        decoder: DaliDecoder,
        items: Sequence[Data],
        infos: Sequence[MediaInfo],
        transform: Image | Video,
        draws: Sequence[Draw | None],
        out: Slots | None,
    ) -> None:
        self._decoder, self._transform, self._out = decoder, to_bytes(transform), out
        self.items, self.infos, self.draws = items, infos, draws
        self._found: dict[int, Decoded] = {}

    def bytes(self, place: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The item as an array over its own memory."""
        return np.frombuffer(self.items[place][:], np.uint8)

    @property
    def results(self) -> list[Decoded]:
        return [self._found[i] for i in range(len(self.items))]

    def run(self, weights: dict[int, int], decode: Callable[[Sequence[int]], None]) -> None:
        """Decodes the items that have a weight (decoded bytes) by ``decode``, all others on the CPU."""
        for places in _chunks({i: weight for i, weight in weights.items() if weight <= MAX_ITEM_BYTES}):
            self._attempt(places, decode)
        for i in range(len(self.items)):
            if i not in self._found:
                self._found[i] = self._on_cpu(i)

    def _attempt(self, places: Sequence[int], decode: Callable[[Sequence[int]], None]) -> None:
        """One call for all; where it fails, one for each, so that a bad item costs no other."""
        try:
            with self._decoder.active():
                decode(places)
        except InputError:
            raise
        except Exception as error:  # DALI raises RuntimeError, ValueError, TypeError, MemoryError ... on damaged bytes
            for i in places:
                self._found.pop(i, None)
            if len(places) == 1:
                self._decoder.tell(places[0], error)
                return
            for i in places:
                self._attempt([i], decode)

    def keep(self, place: int, pixels: torch.Tensor) -> None:
        """Copies the item out of DALI's memory."""
        if self._out is None:
            self._found[place] = pixels.clone(memory_format=torch.contiguous_format)
        else:
            self._found[place] = self._out[place].copy_(pixels)

    def _on_cpu(self, place: int) -> Decoded:
        try:
            array = cpu.decode(self.items[place], self.infos[place], self._transform, draw=self.draws[place])
        except DecodeError as error:
            return error
        with self._decoder.placing():
            pixels = cpu.to_torch(array)
            return pixels.to(self._decoder.device) if self._out is None else self._out[place].copy_(pixels)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(weights: dict[int, int]) -> Iterator[list[int]]:
    """The places in runs of at most CHUNK_BYTES, or of one item."""
    chunk: list[int] = []
    total = 0
    for place, weight in weights.items():
        if chunk and total + weight > CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(place)
        total += weight
    if chunk:
        yield chunk


def _jpeg_size(data: Data) -> Size | None:
    """(height, width) of a sound grey or RGB JPEG within MAX_PIXELS; None for what the CPU engine is to judge."""
    if not isinstance(data, bytes | memoryview) or sniff_image(data) != "jpg":
        return None
    try:
        header = read_jpeg(bytes(data))
    except (ValueError, IndexError):
        return None
    usual = header.mode in ("L", "RGB") and header.width * header.height <= MAX_PIXELS
    return (header.height, header.width) if usual else None


def _tensors(batch: Any) -> list[torch.Tensor]:
    """DALI's results as tensors over its own memory."""
    return [batch.tensors[i].torch() for i in range(batch.batch_size)]


def _is_whole(clip: torch.Tensor) -> bool:
    """Whether all frames but the last, which lies past the clip's end, are frames of the clip."""
    fill = torch.tensor(_FILL, dtype=torch.uint8, device=clip.device)
    made_up: list[bool] = (clip[:, 0] == fill).all(dim=-1).all(dim=-1).tolist()
    return made_up[-1] and not any(made_up[:-1])


def _image_layout(pixels: torch.Tensor, transform: Image) -> torch.Tensor:
    if transform.mode == "L":
        pixels = _grey(pixels)
    return pixels.permute(2, 0, 1) if transform.layout == "CHW" else pixels


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """Pillow's luma (BT.601 in 16-bit fixed point), (H, W, 1)."""
    red, green, blue = pixels.to(torch.int32).unbind(-1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(-1)


def _video_layout(clip: torch.Tensor, transform: Video) -> torch.Tensor:
    return {"TCHW": clip.permute(0, 3, 1, 2), "CTHW": clip.permute(3, 0, 1, 2), "THWC": clip}[transform.layout]
