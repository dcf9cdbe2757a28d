"""The contestants of benchmarks/storage.py, each in a process of its own.

    python storage_contestants.py NAME ACTION FOLDER URL

write: stores the rows of FOLDER below URL; epoch: a shuffled epoch with nothing in any local cache, compared sample by
sample with what was stored; stream: the seconds of one and nothing else; the others are `ACTIONS`. Every batch is 64
photographs with caption and label. The answer is one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import stream_contestants
from stream_data import BATCH, SIZE, Rows, Tally, expected

RANGES = "ranges.json"
"""The file in which (path, first byte, the one behind the last) of each range of an epoch stand."""

_AT_ONCE = 16  # as many as ours
SQL = "SELECT photo, caption, label FROM photos"
PIXELS = 2_560
_CREDS = {"endpoint_url": "AWS_ENDPOINT_URL", "aws_region": "AWS_DEFAULT_REGION"} | {
    name.lower(): name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
}

Epoch = Iterable[dict[str, Any]]


class Ours:
    needs: Sequence[str] = ("deeplake_loader", "s3fs")

    def write(self, folder: str, url: str, rows: Rows) -> None:
        """The photographs on the storage, and in a folder; and the rows that the hybrid query is asked of."""
        import workload

        with self.connect(folder, url) as db, self.connect(folder, None) as local:
            for store in (db, local):
                store.execute(stream_contestants.TABLE)
                store.insert("photos", ({"id": row["label"] + 1, **row} for row in rows))
            db.execute(workload.WITHOUT_IMAGES)
            db.insert("generations", workload.columns(2 * len(rows)))
            for store in (db, local):
                store.optimize()

    @staticmethod
    def connect(folder: str, url: str | None, cache: str = "ours-cache") -> Any:
        """The store whose bytes lie below a url, or the local one."""
        from deeplake_loader import connect

        if url is None:
            return connect(os.path.join(folder, "ours-local"))
        return connect(os.path.join(folder, "ours"), storage=f"{url}/ours", cache_dir=os.path.join(folder, cache))

    def epoch(self, folder: str, url: str | None, *, cold: bool = True) -> Epoch:
        import deeplake_loader as deeplake

        if cold and url is not None:
            self.forget(folder)
        with self.connect(folder, url) as db:
            return db.stream(SQL, batch_size=BATCH, shuffle=True, transforms={"photo": deeplake.Raw()})

    def pixels(self, folder: str, url: str | None) -> Epoch:
        import deeplake_loader as deeplake

        if url is not None:
            self.forget(folder)
        transform = deeplake.Image(size=SIZE, layout="HWC")
        with self.connect(folder, url) as db:
            return db.stream(SQL, batch_size=BATCH, shuffle=True, transforms={"photo": transform})

    @staticmethod
    def forget(folder: str) -> None:
        shutil.rmtree(os.path.join(folder, "ours-cache"), ignore_errors=True)

    def ask(self, folder: str, url: str, query: np.ndarray) -> list[int]:
        import workload

        self.forget(folder)
        with self.connect(folder, url) as db:
            return [row.id for row in db.execute(workload.QUERY, {"query_vec": query})]

    def insert(self, folder: str, url: str, row: dict[str, Any]) -> None:
        with self.connect(folder, url) as db:
            db.execute(
                "INSERT INTO photos (photo, caption, label, embedding) VALUES (%s, %s, %s, %s)",
                [row[name] for name in ("photo", "caption", "label", "embedding")],
            )

    def branch(self, folder: str, url: str) -> None:
        with self.connect(folder, url) as db:
            db.branch("experiment")

    def merge(self, folder: str, url: str) -> None:
        with self.connect(folder, url) as db:
            db.execute("INSERT INTO photos (caption, label, embedding) VALUES ('x', -1, %s)", [[0.5] * 768])
            with db.checkout("experiment"):
                db.execute("UPDATE photos SET caption = 'other' WHERE label = 5")
            db.merge("experiment", into="main")


class DeepLake:
    needs: Sequence[str] = ("deeplake",)

    def write(self, folder: str, url: str, rows: Rows) -> None:  # noqa: ARG002
        import deeplake
        import workload

        dataset = deeplake.create(f"{url}/deeplake", creds=creds())
        for name, kind in (("photo", deeplake.types.Bytes()), ("caption", "text"), ("label", "int64")):
            dataset.add_column(name, kind)
        for first in range(0, len(rows), 1_000):
            given = rows.columns(first, min(first + 1_000, len(rows)))
            dataset.append({name: given[name] for name in ("photo", "caption", "label")})
        dataset.commit()
        generations = workload.new_deeplake(f"{url}/deeplake-generations", creds=creds())
        workload.append_deeplake(generations, workload.for_deeplake(workload.columns(2 * len(rows))))

    def epoch(self, folder: str, url: str) -> Epoch:  # noqa: ARG002
        import deeplake
        from torch.utils.data import DataLoader

        def transform(row: Any) -> dict[str, Any]:
            return {"photo": row["photo"], "caption": row["caption"], "label": int(row["label"])}

        dataset = deeplake.open_read_only(f"{url}/deeplake", creds=creds()).pytorch(transform=transform)
        return DataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=stream_contestants.collated)

    def ask(self, folder: str, url: str, query: np.ndarray) -> list[int]:  # noqa: ARG002
        import deeplake
        import workload

        dataset = deeplake.open_read_only(f"{url}/deeplake-generations", creds=creds())
        return [int(i) for i in dataset.query(workload.deeplake_query(query))["id"][:]]

    def insert(self, folder: str, url: str, row: dict[str, Any]) -> None:  # noqa: ARG002
        import deeplake

        dataset = deeplake.open(f"{url}/deeplake", creds=creds())
        dataset.append([{name: row[name] for name in ("photo", "caption", "label")}])
        dataset.commit()

    def branch(self, folder: str, url: str) -> None:  # noqa: ARG002
        import deeplake

        deeplake.open(f"{url}/deeplake", creds=creds()).branch("experiment")

    def merge(self, folder: str, url: str) -> None:  # noqa: ARG002
        import deeplake

        dataset = deeplake.open(f"{url}/deeplake", creds=creds())
        branch = dataset.branches["experiment"].open()
        branch.append([{"photo": b"x", "caption": "x", "label": -2}])
        branch.commit()
        dataset.merge("experiment")


class LitData:
    needs: Sequence[str] = ("litdata",)

    def write(self, folder: str, url: str, rows: Rows) -> None:
        from litdata.streaming.writer import BinaryWriter

        stored = os.path.join(folder, "litdata")
        writer = BinaryWriter(stored, chunk_bytes="64MB")
        for i, row in enumerate(without_embeddings(rows)):
            writer[i] = row
        writer.done()
        writer.merge()
        upload(stored, f"{url}/litdata")

    def epoch(self, folder: str, url: str) -> Epoch:
        import litdata
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it has no option for a server without TLS
        dataset = litdata.StreamingDataset(
            f"{url}/litdata",
            cache_dir=tempfile.mkdtemp(dir=folder),
            shuffle=True,
            drop_last=False,
            storage_options={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]},
        )
        return litdata.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=stream_contestants.collated)


class Mosaicml:
    needs: Sequence[str] = ("streaming",)

    def write(self, folder: str, url: str, rows: Rows) -> None:
        from streaming import MDSWriter

        stored = os.path.join(folder, "mosaicml")
        with MDSWriter(out=stored, columns={"photo": "bytes", "caption": "str", "label": "int"}) as writer:
            for row in without_embeddings(rows):
                writer.write(row)
        upload(stored, f"{url}/mosaicml")

    def epoch(self, folder: str, url: str) -> Epoch:
        from streaming import StreamingDataset
        from torch.utils.data import DataLoader

        dataset = StreamingDataset(
            remote=f"{url}/mosaicml", local=tempfile.mkdtemp(dir=folder), shuffle=True, batch_size=BATCH
        )
        return DataLoader(dataset, batch_size=BATCH, collate_fn=stream_contestants.collated)


class LanceDb:
    needs: Sequence[str] = ("lancedb.streaming", "torch")

    def database(self, url: str) -> Any:
        import lancedb

        return lancedb.connect(f"{url}/lancedb", storage_options=creds() | {"allow_http": "true"})

    def write(self, folder: str, url: str, rows: Rows) -> None:  # noqa: ARG002
        import pyarrow as pa
        import workload

        given = rows.columns(0, len(rows))
        table = pa.table({name: given[name] for name in ("photo", "caption", "label")})
        self.database(url).create_table("photos", table)
        found = workload.columns(2 * len(rows))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(found["clip_embedding"].reshape(-1)), workload.DIMENSION)
        self.database(url).create_table("generations", pa.table({**found, "clip_embedding": vectors}))

    def epoch(self, folder: str, url: str) -> Epoch:  # noqa: ARG002
        from lancedb.streaming import StreamingDataset
        from torch.utils.data import DataLoader

        dataset = StreamingDataset(
            self.database(url).open_table("photos"),
            epoch=0,
            read_batch_size=BATCH,
            transform=lambda found: found.to_pylist(),
            transform_parallelism=stream_contestants.DECODERS,
        )
        return DataLoader(dataset, batch_size=BATCH, collate_fn=stream_contestants.collated)

    def ask(self, folder: str, url: str, query: np.ndarray) -> list[int]:  # noqa: ARG002
        import workload

        search = self.database(url).open_table("generations").search(query).distance_type("cosine")
        found = search.where(workload.WHERE, prefilter=True).select(["id", "prompt"]).limit(workload.TOP).to_list()
        return [int(row["id"]) for row in found]

    def insert(self, folder: str, url: str, row: dict[str, Any]) -> None:  # noqa: ARG002
        self.database(url).open_table("photos").add([{name: row[name] for name in ("photo", "caption", "label")}])


class Bare:
    """What the machine can do: threads that fetch ranges, a connection each, without a library."""

    def fetch(self, folder: str, put: Callable[[memoryview, int], object]) -> float:
        """Seconds until every range that `RANGES` names has come; each piece of up to 1 MB is put at its place."""
        with open(os.path.join(folder, RANGES)) as file:
            ranges = json.load(file)
        begun = time.perf_counter()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for done in [pool.submit(self._fetch, *one, put) for one in ranges]:
                done.result()
        return time.perf_counter() - begun

    @staticmethod
    def _fetch(path: str, start: int, stop: int, put: Callable[[memoryview, int], object]) -> None:
        server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
        with socket.create_connection((server.hostname, server.port)) as link:
            link.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {server.netloc}\r\nRange: bytes={start}-{stop - 1}\r\n\r\n".encode()
            )
            buffer = memoryview(bytearray(1 << 20))
            head = b""
            while b"\r\n\r\n" not in head:
                head += link.recv(1)
            assert b" 206 " in head.partition(b"\r\n")[0], head
            while start < stop:
                count = link.recv_into(buffer[: stop - start])
                assert count, "the server closed the connection"
                put(buffer[:count], start)
                start += count


CONTESTANTS: dict[str, Any] = {
    "bare": Bare(),
    "ours": Ours(),
    "deeplake": DeepLake(),
    "lancedb": LanceDb(),
    "litdata": LitData(),
    "mosaicml": Mosaicml(),
}


def creds() -> dict[str, str]:
    return {option: os.environ[name] for option, name in _CREDS.items()}


def without_embeddings(rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {name: row[name] for name in ("photo", "caption", "label")}


def upload(stored: str, url: str) -> None:
    """The files of a folder as objects."""
    import boto3

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for at, _, names in os.walk(stored):
        for name in names:
            path = os.path.join(at, name)
            boto3.client("s3").upload_file(path, bucket, f"{prefix}/{os.path.relpath(path, stored)}")


# -- what a process does -----------------------------------------------------------------------------------------------


def epoch(contestant: Any, folder: str, url: str) -> dict[str, Any]:
    """Raises AssertionError unless the epoch has every sample once, with its bytes and caption."""
    import torch  # noqa: F401  whose second of import is nobody's

    rows, tally = Rows(folder), Tally()
    begun = time.perf_counter()
    for batch in contestant.epoch(folder, url):
        tally.add(batch)
    seconds = time.perf_counter() - begun
    found, wanted = tally.figures(), expected(rows) | {"vectors": 0}
    assert found == wanted, f"the epoch gave {found}, not {wanted}"
    return {"seconds": seconds}


def stream(contestant: Any, folder: str, url: str | None) -> dict[str, Any]:
    """Stored bytes, with nothing in the cache; without a url from the local disk."""
    return timed(lambda: contestant.epoch(folder, url))


def kept(contestant: Any, folder: str, url: str | None) -> dict[str, Any]:
    """The same with the cache that another process has filled."""
    return timed(lambda: contestant.epoch(folder, url, cold=False))


def pixels(contestant: Any, folder: str, url: str | None) -> dict[str, Any]:
    """Photographs decoded to 224 x 224."""
    return timed(lambda: contestant.pixels(folder, url))


def fetched(contestant: Any, folder: str, url: str | None) -> dict[str, Any]:  # noqa: ARG001
    """The ranges of an epoch, thrown away."""
    return {"seconds": contestant.fetch(folder, lambda *_: None)}


def landed(contestant: Any, folder: str, url: str | None) -> dict[str, Any]:  # noqa: ARG001
    """The ranges of an epoch, in a file where the cache would lie."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return {"seconds": contestant.fetch(folder, lambda piece, at: os.pwrite(file.fileno(), piece, at))}


def timed(make: Callable[[], Epoch]) -> dict[str, Any]:
    import torch  # noqa: F401

    begun = time.perf_counter()
    samples = sum(len(batch["label"]) for batch in make())
    return {"seconds": time.perf_counter() - begun, "samples": samples}


def ask(contestant: Any, folder: str, url: str) -> dict[str, Any]:
    """The hybrid query, cold: recall 1.0 or an AssertionError."""
    import workload

    given, query = workload.columns(2 * len(Rows(folder))), workload.query_vectors(1)[0]
    begun = time.perf_counter()
    found = contestant.ask(folder, url, query)
    seconds = time.perf_counter() - begun
    workload.check_top(given, query, found, type(contestant).__name__)
    return {"seconds": seconds}


def insert(contestant: Any, folder: str, url: str) -> dict[str, Any]:
    """One row with a photograph, in a process that opened the store for it."""
    row = next(iter(Rows(folder)))
    begun = time.perf_counter()
    contestant.insert(folder, url, {**row, "label": -3})
    return {"seconds": time.perf_counter() - begun}


def insert_large(contestant: Any, folder: str, url: str) -> dict[str, Any]:
    """The same with a comment of 64 KB in the photograph, which makes it too large to rest in a catalog."""
    row = next(iter(Rows(folder)))
    photo = row["photo"][:2] + b"\xff\xfe\xff\xff" + bytes(65_533) + row["photo"][2:]
    begun = time.perf_counter()
    contestant.insert(folder, url, {**row, "label": -4, "photo": photo})
    return {"seconds": time.perf_counter() - begun}


def branch(contestant: Any, folder: str, url: str) -> dict[str, Any]:
    begun = time.perf_counter()
    contestant.branch(folder, url)
    return {"seconds": time.perf_counter() - begun}


def merge(contestant: Any, folder: str, url: str) -> dict[str, Any]:
    """One row changed on the branch, which is then merged."""
    begun = time.perf_counter()
    contestant.merge(folder, url)
    return {"seconds": time.perf_counter() - begun}


ACTIONS: dict[str, Callable[[Any, str, Any], dict[str, Any]]] = {
    made.__name__: made
    for made in (epoch, stream, kept, pixels, fetched, landed, ask, insert, insert_large, branch, merge)
}


def main(name: str, action: str, folder: str, url: str) -> None:
    contestant = CONTESTANTS[name]
    if action == "usable":
        result: dict[str, Any] = {"usable": stream_contestants.usable(contestant)}
    elif action == "write":
        contestant.write(folder, url, Rows(folder))
        result = {}
    else:
        result = ACTIONS[action](contestant, folder, url or None)
    print(json.dumps(result), flush=True)
    os._exit(0)  # some leave threads or processes that do not end


if __name__ == "__main__":
    main(*sys.argv[1:])
