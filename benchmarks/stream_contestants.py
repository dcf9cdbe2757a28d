"""The contestants of benchmarks/stream.py, each in a process of its own.

    python stream_contestants.py NAME write FOLDER     stores the rows of FOLDER in the contestant's way
    python stream_contestants.py NAME check FOLDER     one epoch, sample by sample, and a decoded batch
    python stream_contestants.py NAME raw FOLDER       seconds of epochs of stored bytes
    python stream_contestants.py NAME decoded FOLDER   seconds of an epoch of 224 x 224 pixels
    python stream_contestants.py NAME first FOLDER     ends with the first batch of bytes

Every batch is a dict of 64 photographs, captions, labels and, but for the readers of our own tars, embeddings. Loops
over plain files hold captions, labels and embeddings in memory. Who has no decoder gets the usual one, Pillow, on two
worker processes or threads; `_cv2` stands for OpenCV in its place, which does not antialias.
"""

from __future__ import annotations

import glob
import importlib.util
import io
import json
import os
import random
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from stream_data import BATCH, SIZE, Rows, Tally, expected

Batch = dict[str, Any]
Epochs = Callable[[int], Iterable[Batch]]
"""From the number of an epoch to its batches."""

SQL = "SELECT photo, caption, label, embedding FROM photos"
TABLE = """CREATE TABLE photos (id BIGINT PRIMARY KEY, photo IMAGE, caption TEXT NOT NULL, label BIGINT NOT NULL,
           embedding VECTOR(768) NOT NULL)"""
RAW_EPOCHS = 3
DECODED_SAMPLES = 2_560
DECODERS = 2
_READ_BYTES = 8 << 20


class Contestant(Protocol):
    """``needs`` are modules; ``stored`` names the folder that `write` fills, shared by those that read the same."""

    @property
    def needs(self) -> Sequence[str]: ...

    @property
    def stored(self) -> str: ...

    def write(self, folder: str, rows: Rows) -> None: ...

    def raw(self, folder: str) -> Epochs: ...

    def decoded(self, folder: str) -> Epochs: ...


# -- decoding ----------------------------------------------------------------------------------------------------------


def by_pillow(data: Any) -> np.ndarray:
    """(224, 224, 3): the centred square, bilinear, antialiased."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BILINEAR))


def by_cv2(data: Any) -> np.ndarray:
    """The same by OpenCV: bilinear, not antialiased."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return cv2.resize(pixels[top : top + side, left : left + side], (SIZE, SIZE))


def collated(samples: Sequence[dict[str, Any]]) -> Batch:
    """One dict of a list of dicts: numbers, vectors and pixels as tensors."""
    import torch

    batch: Batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    batch["label"] = torch.tensor(batch["label"])
    for name in ("embedding", "photo"):
        if name in batch and isinstance(batch[name][0], np.ndarray):
            batch[name] = torch.from_numpy(np.stack(batch[name]))
    return batch


def mapped(decode: Callable[[Any], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return Decoded(decode)


class Decoded:
    """A sample with its photograph decoded; a class, so that it pickles."""

    def __init__(self, decode: Callable[[Any], np.ndarray]) -> None:
        self.decode = decode

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "photo": self.decode(sample["photo"])}


# -- ours --------------------------------------------------------------------------------------------------------------


class Ours:
    needs, stored = ("deeplake_loader",), "ours"

    def write(self, folder: str, rows: Rows) -> None:
        from deeplake_loader import connect

        with connect(folder) as db:
            db.execute(TABLE)
            db.insert("photos", ({"id": row["label"] + 1, **row} for row in rows))
            db.optimize()

    def raw(self, folder: str) -> Epochs:
        import deeplake_loader as deeplake

        return self._stream(folder, deeplake.Raw())

    def decoded(self, folder: str) -> Epochs:
        import deeplake_loader as deeplake

        return self._stream(folder, deeplake.Image(size=SIZE, layout="HWC"))

    def _stream(self, folder: str, transform: object) -> Epochs:
        from deeplake_loader import connect

        with connect(folder, create=False) as db:
            stream = db.stream(SQL, batch_size=BATCH, shuffle=True, transforms={"photo": transform})
        return lambda _: iter(stream)


class Limit:
    """What no loader around the same bytes can beat."""

    needs: Sequence[str] = ()
    stored = "ours"

    def write(self, folder: str, rows: Rows) -> None:
        raise NotImplementedError

    def raw(self, folder: str) -> Epochs:
        raise NotImplementedError

    def decoded(self, folder: str) -> Epochs:
        raise NotImplementedError


class SequentialRead(Limit):
    """Our tars from end to end, without a look at what is in them."""

    def raw(self, folder: str) -> Epochs:
        paths, count = tars(folder), len(Rows(os.path.dirname(folder)))
        room = memoryview(bytearray(_READ_BYTES))

        def epoch(_: int) -> Iterator[Batch]:
            for path in paths:
                with open(path, "rb", buffering=0) as file:
                    while file.readinto(room):
                        pass
            yield {"photo": (), "label": range(count)}

        return epoch


class MemoryCopy(Limit):
    """Each batch's bytes from one place in memory to another."""

    def raw(self, folder: str) -> Epochs:
        rows = Rows(os.path.dirname(folder))
        source = np.frombuffer(b"".join(rows.pictures), np.uint8)
        target, share = np.empty_like(source), len(source) / len(rows.pictures)

        def epoch(_: int) -> Iterator[Batch]:
            for first in range(0, len(rows), BATCH):
                count = min(BATCH, len(rows) - first)
                start = int(share * (first % (len(rows.pictures) - BATCH)))
                size = int(share * count)
                target[start : start + size] = source[start : start + size]
                yield {"photo": (), "label": range(count)}

        return epoch


class BareDecoder(Limit):
    """The functions that our stream decodes with, on as many threads, over bytes in memory."""

    def decoded(self, folder: str) -> Epochs:
        import torch

        from deeplake_loader.codecs import MediaInfo
        from deeplake_loader.decode import cpu
        from deeplake_loader.decode.transforms import Image

        rows, info, transform = Rows(os.path.dirname(folder)), MediaInfo("image"), Image(size=SIZE, layout="HWC")
        pool = ThreadPoolExecutor(DECODERS)

        def piece(out: np.ndarray, first: int) -> None:
            for i in range(8):
                cpu.decode_into(rows.picture(first + i), info, transform, out[i])

        def epoch(_: int) -> Iterator[Batch]:
            batches = []
            for first in range(0, DECODED_SAMPLES, BATCH):
                pixels = torch.empty((BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
                array = pixels.numpy()
                parts = [pool.submit(piece, array[i : i + 8], first + i) for i in range(0, BATCH, 8)]
                batches.append((pixels, parts))
                if len(batches) > 2:
                    yield self._ready(*batches.pop(0))
            yield from (self._ready(*batch) for batch in batches)

        return epoch

    @staticmethod
    def _ready(pixels: Any, parts: Sequence[Any]) -> Batch:
        for part in parts:
            part.result()
        return {"photo": pixels, "label": range(len(pixels))}


def tars(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(folder, "shards", "**", "*.tar"), recursive=True))


# -- plain files -------------------------------------------------------------------------------------------------------


class Files:
    """One file a photograph, in a torch DataLoader."""

    needs: Sequence[str] = ("torch",)
    stored = "files"
    workers = 0
    decode = staticmethod(by_pillow)

    def write(self, folder: str, rows: Rows) -> None:
        for i in range(len(rows)):
            path = self.path(folder, i)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(rows.picture(i))

    @staticmethod
    def path(folder: str, i: int) -> str:
        return os.path.join(folder, f"{i // 1000:04d}", f"{i:08d}.jpg")

    def raw(self, folder: str) -> Epochs:
        return self._loader(FilesDataset(folder, None), self.workers)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(FilesDataset(folder, self.decode), DECODERS)

    def _loader(self, dataset: Any, workers: int) -> Epochs:
        from torch.utils.data import DataLoader

        loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=collated)
        return lambda _: loader


class FilesDataset:
    """Map-style; a batch of it at once is a list."""

    def __init__(self, folder: str, decode: Callable[[Any], np.ndarray] | None) -> None:
        self.folder, self.decode, self.rows = folder, decode, Rows(os.path.dirname(folder))
        self.captions, self.embeddings = self.rows.captions, self.rows.embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        file = os.open(Files.path(self.folder, i), os.O_RDONLY)
        try:
            data = os.read(file, 1 << 18)  # one call for every photograph here; a buffer of 1 MB is 5 times as slow
        finally:
            os.close(file)
        photo = data if self.decode is None else self.decode(data)
        return {"photo": photo, "caption": self.captions[i], "label": i, "embedding": self.embeddings[i]}


class FilesTwoWorkers(Files):
    workers = 2


class FilesCv2(Files):
    needs = ("torch", "cv2")
    decode = staticmethod(by_cv2)


class Nodes(Files):
    """torchdata.nodes over the same files: in the process for bytes, two threads for pixels."""

    needs: Sequence[str] = ("torchdata.nodes",)

    def _loader(self, dataset: Any, workers: int) -> Epochs:
        from torch.utils.data import BatchSampler, RandomSampler
        from torchdata import nodes

        def batch(places: Sequence[int]) -> Batch:
            return collated([dataset[i] for i in places])

        source = nodes.SamplerWrapper(BatchSampler(RandomSampler(dataset), BATCH, drop_last=False))
        mapper = (
            nodes.ParallelMapper(source, batch, workers, method="thread") if workers else nodes.Mapper(source, batch)
        )
        loader = nodes.Loader(mapper)
        return lambda _: loader


class NodesCv2(Nodes):
    needs = ("torchdata.nodes", "cv2")
    decode = staticmethod(by_cv2)


class Spdl(Files):
    """SPDL's pipeline over the same files, two threads."""

    needs: Sequence[str] = ("spdl.pipeline",)

    def _loader(self, dataset: Any, workers: int) -> Epochs:  # noqa: ARG002  two threads for bytes, too
        from spdl.pipeline import PipelineBuilder

        def batch(places: Sequence[int]) -> Batch:
            return collated([dataset[i] for i in places])

        def epoch(number: int) -> Iterator[Batch]:
            places = list(range(len(dataset)))
            random.Random(number).shuffle(places)
            chunks = [places[i : i + BATCH] for i in range(0, len(places), BATCH)]
            builder = PipelineBuilder().add_source(chunks).pipe(batch, concurrency=DECODERS).add_sink(3)
            pipeline = builder.build(num_threads=DECODERS)
            with pipeline.auto_stop():
                yield from pipeline

        return epoch


class SpdlCv2(Spdl):
    needs = ("spdl.pipeline", "cv2")
    decode = staticmethod(by_cv2)


# -- our tars by others ------------------------------------------------------------------------------------------------


class WebDataset:
    """Our own tars: shuffled by shard and in a buffer of 500."""

    needs: Sequence[str] = ("webdataset",)
    stored = "ours"
    workers = 0

    def write(self, folder: str, rows: Rows) -> None:
        raise NotImplementedError

    def raw(self, folder: str) -> Epochs:
        return self._loader(folder, None, self.workers)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(folder, by_pillow, DECODERS)

    def _loader(self, folder: str, decode: Callable[[Any], np.ndarray] | None, workers: int) -> Epochs:
        import webdataset
        from torch.utils.data import DataLoader

        dataset = webdataset.WebDataset(tars(folder), shardshuffle=100, empty_check=False).shuffle(500)
        batches = dataset.map(FromTar(decode)).batched(BATCH, collation_fn=collated)
        if not workers:
            return lambda _: batches
        loader = DataLoader(batches, batch_size=None, num_workers=workers)
        return lambda _: loader


class WebDatasetTwoWorkers(WebDataset):
    workers = 2


class FromTar:
    """A sample of our tars."""

    def __init__(self, decode: Callable[[Any], np.ndarray] | None) -> None:
        self.decode = decode

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        data = next(value for name, value in sample.items() if name.lstrip(".").endswith(("jpg", "jpeg")))
        data = data if isinstance(data, bytes) else data.read()
        facts = sample.get("json") or sample[".json"]
        found = json.loads(facts if isinstance(facts, bytes) else facts.read())
        photo = data if self.decode is None else self.decode(data)
        return {"photo": photo, "caption": found["caption"], "label": found["label"]}


class Wids(WebDataset):
    """Our own tars with an index, in shuffled order."""

    needs = ("wids",)

    def _loader(self, folder: str, decode: Callable[[Any], np.ndarray] | None, workers: int) -> Epochs:
        from torch.utils.data import DataLoader

        dataset = self.dataset(folder).add_transform(FromTar(decode))
        loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=collated)
        return lambda _: loader

    @staticmethod
    def dataset(folder: str) -> Any:
        import wids

        shards = [{"url": path, "nsamples": _samples(path)} for path in tars(folder)]
        return wids.ShardListDataset(shards, lru_size=200, keep=True, transformations=[], localname=str)


def _samples(path: str) -> int:
    with tarfile.open(path) as tar:
        return len({name.partition(".")[0] for name in tar.getnames()})


# -- other formats -----------------------------------------------------------------------------------------------------


class LitData:
    needs, stored = ("litdata",), "litdata"

    def write(self, folder: str, rows: Rows) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(folder, chunk_bytes="64MB")
        for i, row in enumerate(rows):
            writer[i] = row
        writer.done()
        writer.merge()

    def raw(self, folder: str) -> Epochs:
        return self._loader(folder, None, 0)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(folder, mapped(by_pillow), DECODERS)

    def _loader(self, folder: str, transform: Any, workers: int) -> Epochs:
        import litdata

        dataset = litdata.StreamingDataset(folder, shuffle=True, drop_last=False, transform=transform)
        loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collated)
        return lambda _: loader


class Mosaicml:
    needs, stored = ("streaming",), "mosaicml"

    def write(self, folder: str, rows: Rows) -> None:
        from streaming import MDSWriter

        kinds = {"photo": "bytes", "caption": "str", "label": "int", "embedding": "ndarray:float32:768"}
        with MDSWriter(out=folder, columns=kinds) as writer:
            for row in rows:
                writer.write(row)

    def raw(self, folder: str) -> Epochs:
        return self._loader(folder, None, 0)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(folder, by_pillow, DECODERS)

    def _loader(self, folder: str, decode: Callable[[Any], np.ndarray] | None, workers: int) -> Epochs:
        from streaming import StreamingDataset
        from torch.utils.data import DataLoader

        class Decoding(StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                return sample if decode is None else mapped(decode)(sample)

        dataset = Decoding(local=folder, shuffle=True, batch_size=BATCH)
        loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collated)
        return lambda _: loader


class LanceDb:
    """lancedb.streaming.StreamingDataset: threads of its own, no worker processes."""

    needs, stored = ("lancedb.streaming", "torch"), "lancedb"

    def write(self, folder: str, rows: Rows) -> None:
        import lancedb

        chunks = (_arrow(rows, first) for first in range(0, len(rows), 2_000))
        lancedb.connect(folder).create_table(
            "photos", data=(b for t in chunks for b in t.to_batches()), schema=_schema()
        )

    def raw(self, folder: str) -> Epochs:
        return self._loader(folder, None)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(folder, by_pillow)

    def _loader(self, folder: str, decode: Callable[[Any], np.ndarray] | None) -> Epochs:
        import lancedb
        from lancedb.streaming import StreamingDataset
        from torch.utils.data import DataLoader

        table = lancedb.connect(folder).open_table("photos")

        def transform(found: Any) -> list[dict[str, Any]]:
            rows = _from_arrow(found)
            return rows if decode is None else [mapped(decode)(row) for row in rows]

        def epoch(number: int) -> Iterable[Batch]:
            dataset = StreamingDataset(
                table, epoch=number, read_batch_size=BATCH, transform=transform, transform_parallelism=DECODERS
            )
            return DataLoader(dataset, batch_size=BATCH, collate_fn=collated)

        return epoch


class HuggingFace:
    """`datasets.Dataset`, map-style over Arrow, a batch of rows in one get."""

    needs, stored = ("datasets", "torch"), "huggingface"

    def write(self, folder: str, rows: Rows) -> None:
        import pyarrow as pa

        os.makedirs(folder)
        with pa.OSFile(os.path.join(folder, "photos.arrow"), "wb") as file, pa.ipc.new_stream(file, _schema()) as out:
            for first in range(0, len(rows), 1_000):
                out.write_table(_arrow(rows, first, 1_000))

    def raw(self, folder: str) -> Epochs:
        return self._loader(folder, None, 0)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(folder, by_pillow, DECODERS)

    def _loader(self, folder: str, decode: Callable[[Any], np.ndarray] | None, workers: int) -> Epochs:
        import datasets
        from torch.utils.data import BatchSampler, DataLoader, RandomSampler

        dataset = datasets.Dataset.from_file(os.path.join(folder, "photos.arrow")).with_format("arrow")

        def batch(table: Any) -> Batch:
            rows = _from_arrow(table)
            return collated(rows if decode is None else [mapped(decode)(row) for row in rows])

        sampler = BatchSampler(RandomSampler(dataset), BATCH, drop_last=False)
        loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers, collate_fn=batch)
        return lambda _: loader


class DeepLake:
    needs, stored = ("deeplake",), "deeplake"

    def write(self, folder: str, rows: Rows) -> None:
        import deeplake

        dataset = deeplake.create(folder)
        kinds = {
            "photo": deeplake.types.Bytes(),
            "caption": "text",
            "label": "int64",
            "embedding": deeplake.types.Embedding(768),
        }
        for name, kind in kinds.items():
            dataset.add_column(name, kind)
        for first in range(0, len(rows), 1_000):
            dataset.append(rows.columns(first, min(first + 1_000, len(rows))))
        dataset.commit()

    def raw(self, folder: str) -> Epochs:
        return self._loader(folder, None, 0)

    def decoded(self, folder: str) -> Epochs:
        return self._loader(folder, by_pillow, 0)  # its readers do not survive a fork

    def _loader(self, folder: str, decode: Callable[[Any], np.ndarray] | None, workers: int) -> Epochs:
        import deeplake
        from torch.utils.data import DataLoader

        def transform(row: Any) -> dict[str, Any]:
            found = {name: row[name] for name in ("photo", "caption", "embedding")} | {"label": int(row["label"])}
            return found if decode is None else mapped(decode)(found)

        dataset = deeplake.open_read_only(folder).pytorch(transform=transform)
        loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=collated)
        return lambda _: loader


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "photo": pa.binary(),
        "caption": pa.string(),
        "label": pa.int64(),
        "embedding": pa.list_(pa.float32(), 768),
    }
    return pa.schema(list(kinds.items()))


def _arrow(rows: Rows, first: int, count: int = 2_000) -> Any:
    import pyarrow as pa

    given = rows.columns(first, min(first + count, len(rows)))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(given["embedding"].reshape(-1)), 768)
    return pa.table({**given, "embedding": vectors}, schema=_schema())


def _from_arrow(table: Any) -> list[dict[str, Any]]:
    """Rows of a table or record batch, the vectors as numpy."""
    vectors = table.column("embedding")
    chunks = vectors.chunks if hasattr(vectors, "chunks") else [vectors]
    matrix = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]).reshape(-1, 768)
    names = ("photo", "caption", "label")
    columns = [table.column(name).to_pylist() for name in names]
    return [
        {**dict(zip(names, row, strict=True)), "embedding": vector}
        for *row, vector in zip(*columns, matrix, strict=True)
    ]


CONTESTANTS: dict[str, Contestant] = {
    "ours": Ours(),
    "sequential_read": SequentialRead(),
    "memory_copy": MemoryCopy(),
    "bare_decoder": BareDecoder(),
    "dataloader_files": Files(),
    "dataloader_files_2_workers": FilesTwoWorkers(),
    "dataloader_cv2": FilesCv2(),
    "torchdata_nodes": Nodes(),
    "torchdata_nodes_cv2": NodesCv2(),
    "spdl": Spdl(),
    "spdl_cv2": SpdlCv2(),
    "webdataset": WebDataset(),
    "webdataset_2_workers": WebDatasetTwoWorkers(),
    "wids": Wids(),
    "litdata": LitData(),
    "mosaicml": Mosaicml(),
    "lancedb": LanceDb(),
    "huggingface": HuggingFace(),
    "deeplake": DeepLake(),
}


# -- what a process does -----------------------------------------------------------------------------------------------


def usable(contestant: Contestant) -> bool:
    """Whether its modules are there; nothing is imported but their parents."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in contestant.needs)
    except ModuleNotFoundError:
        return False


def check(contestant: Contestant, folder: str, rows: Rows) -> dict[str, Any]:
    """Raises AssertionError unless an epoch has every sample once, with its bytes, caption and embedding."""
    if isinstance(contestant, Limit):
        return {}
    tally = Tally()
    for batch in contestant.raw(folder)(0):
        tally.add(batch)
    found, wanted = tally.figures(), expected(rows)
    if isinstance(contestant, WebDataset):
        wanted["vectors"] = 0
    assert found == wanted, f"an epoch gave {found}, not {wanted}"
    batch = next(iter(contestant.decoded(folder)(0)))
    assert tuple(batch["photo"].shape) == (BATCH, SIZE, SIZE, 3), batch["photo"].shape
    apart = [
        float(np.abs(np.asarray(pixels, np.int64) - by_pillow(rows.picture(int(label)))).mean())
        for pixels, label in zip(batch["photo"], batch["label"], strict=True)
    ]
    most = 8.0 if "cv2" in contestant.needs else 1.0
    assert max(apart) <= most, f"pixels are {max(apart):.2f} grey levels from Pillow's in the mean"
    return {"grey_levels_apart": round(float(np.mean(apart)), 3)}


def warm(folder: str) -> None:
    """Brings the files into the page cache."""
    room = memoryview(bytearray(_READ_BYTES))
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb", buffering=0) as file:
                while file.readinto(room):
                    pass


def raw(contestant: Contestant, folder: str) -> dict[str, Any]:
    """Seconds to make the loader, to its first batch, and of each epoch; every photograph is taken out of its batch.

    `cpu_us` is the work of this process per sample, without workers.
    """
    warm(folder)
    begun = time.perf_counter()
    epochs = contestant.raw(folder)
    made = time.perf_counter() - begun
    work, found = time.process_time(), []
    for number in range(RAW_EPOCHS):
        found.append(epoch_of(epochs(number), None))
    spent = (time.process_time() - work) / RAW_EPOCHS / len(Rows(os.path.dirname(folder)))
    seconds, firsts = zip(*found, strict=True)
    return {"make_s": made, "first_batch_s": firsts[0], "epochs_s": seconds, "cpu_us": spent * 1e6}


def decoded(contestant: Contestant, folder: str) -> dict[str, Any]:
    """The same for pixels; `rss_mb` is what the process has come to hold at most since it had imported torch."""
    if importlib.util.find_spec("torch") is not None:
        import torch  # noqa: F401
    before = memory("VmRSS")
    begun = time.perf_counter()
    epochs = contestant.decoded(folder)
    made = time.perf_counter() - begun
    seconds, first = epoch_of(epochs(0), DECODED_SAMPLES)
    return {"make_s": made, "first_batch_s": first, "epochs_s": [seconds], "rss_mb": memory("VmHWM") - before}


def epoch_of(batches: Iterable[Batch], most: int | None) -> tuple[float, float]:
    """Seconds of an epoch, or of its first ``most`` samples, and to its first batch."""
    samples, first = 0, 0.0
    begun = time.perf_counter()
    running = iter(batches)
    for batch in running:
        first = first or time.perf_counter() - begun
        for _photo in batch["photo"] if most is None else ():
            pass
        samples += len(batch["label"])
        if most is not None and samples >= most:
            break
    seconds = time.perf_counter() - begun
    assert most is None or samples >= most, f"only {samples} samples came"
    return seconds, first


def memory(field: str) -> float:
    """A line of this process's status, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(field + ":"))


def main(name: str, action: str, folder: str) -> None:
    contestant = CONTESTANTS[name]
    rows, stored = Rows(folder), os.path.join(folder, contestant.stored)
    result: dict[str, Any] = {}
    if action == "usable":
        result["usable"] = usable(contestant)
    elif action == "write":
        contestant.write(stored, rows)
    elif action == "check":
        result = check(contestant, stored, rows)
    elif action == "first":
        next(iter(contestant.raw(stored)(0)))
    else:
        result = {"raw": raw, "decoded": decoded}[action](contestant, stored)
    print(json.dumps(result), flush=True)
    os._exit(0)  # some leave threads or processes that do not end


if __name__ == "__main__" and len(sys.argv) == 4:
    main(*sys.argv[1:])
